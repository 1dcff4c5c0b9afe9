"""The OpenAI-compatible server and the command line. Imports point one way, from `commands` down to `engine`."""
