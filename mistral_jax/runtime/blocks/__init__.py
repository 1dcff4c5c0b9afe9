"""Which blocks of the KV cache each sequence has, and which are kept because their tokens may come again.

Pure Python, on the host: no JAX, no arrays. What is decided here becomes tables and copies on the device."""
