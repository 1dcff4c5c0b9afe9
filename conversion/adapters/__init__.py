"""Adapters in files: LoRA folders, X-LoRA classifiers with their adapters, and ordering files."""
