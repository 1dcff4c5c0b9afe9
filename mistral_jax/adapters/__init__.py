"""LoRA adapters and X-LoRA on the device: the adapter bank, the classifier, and the choice of adapters of a request.

`conversion.adapters` reads their files; the low-rank operation is part of the model (`mistral_jax.model.low_rank`)."""
