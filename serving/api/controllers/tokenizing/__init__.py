"""The tokenizer and the chat template by themselves, in the shapes of llama.cpp and of vLLM."""
