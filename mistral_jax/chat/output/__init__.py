"""What a model writes after the prompt: reasoning, text and tool calls. Their formats as data, a parser for them, and
grammars that hold a model to them. No prompts (see the folder above), no HTTP, no JAX."""
