"""Tensors in files: safetensors, names of tensors by format, ggml's types, and the form that each weight takes on the
device."""
