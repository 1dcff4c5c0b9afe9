"""/v1/responses, OpenAI's newer API: each request becomes one of /v1/chat/completions, and its completion becomes the
items of a response. Nothing is stored."""
