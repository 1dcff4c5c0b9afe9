"""The OpenAI-compatible server and the command line. Each room imports only what stands below it."""
