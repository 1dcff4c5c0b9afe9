"""Sampled tokens to text: the detokenizer, stop strings, and the stream of pieces that a completion becomes. No JAX
arrays, no HTTP."""
