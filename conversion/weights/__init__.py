"""Tensors in files: safetensors, names of tensors by format, ggml's types, and in which form a weight is held."""
