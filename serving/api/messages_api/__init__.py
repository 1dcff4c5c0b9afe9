"""/v1/messages, Anthropic's API: each request becomes one of /v1/chat/completions, and its completion becomes the
content blocks of a message. Errors have Anthropic's shape, too."""
