"""LoRA adapters and X-LoRA on the device: the bank that holds them, the classifier, and which of them a request uses.

Reading their files is `conversion.adapters`; the low-rank operation is part of the model
(`mistral_jax.model.low_rank`)."""
