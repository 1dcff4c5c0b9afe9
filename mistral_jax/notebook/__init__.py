"""What is called from Python without a server: `load`, `LanguageModel`, their results and heat maps, and `verify`,
which compares models.

The server uses none of it but `verify` (the command)."""
