"""The decoder: its configuration, its layers, attention, and the KV cache. Pure functions and Flax modules.

Nothing here knows requests, slots that come and go, files of weights, or adapters by name."""
