"""The decoder: its configuration, its layers, attention, and the KV cache. Pure functions and Flax modules.

Nothing here deals with requests, the admission of sequences to slots, weight files or the names of adapters."""
