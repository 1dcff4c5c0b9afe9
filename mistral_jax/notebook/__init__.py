"""The Python API without a server: `load`, `LanguageModel`, their results and heat maps, and `verify`, which compares
models.

The server uses only `verify`, for the command."""
