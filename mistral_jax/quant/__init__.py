"""Weights that stay packed on the device: their forms (`array`), products with them (`product`), and the options for
loading them (`plan`)."""
