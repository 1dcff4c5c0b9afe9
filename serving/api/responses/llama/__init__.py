"""Completions and settings in llama.cpp's own JSON."""
