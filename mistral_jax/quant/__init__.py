"""Weights that stay packed on the device: what they are (`array`), products with them (`product`), and which tensors
get them (`plan`)."""
