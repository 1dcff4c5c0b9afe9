"""LoRA folders as PEFT writes them: configuration, names, factors."""
