"""A Hugging Face or Mistral folder as a new GGUF model: metadata, tokenizer, mix of types."""
