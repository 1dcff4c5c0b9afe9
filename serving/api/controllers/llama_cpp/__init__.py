"""Endpoints of llama.cpp that OpenAI's API does not have, for clients that were made for it."""
