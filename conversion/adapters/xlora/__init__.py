"""X-LoRA folders in every layout: configuration, classifier, adapters, ordering files."""
