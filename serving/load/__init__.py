"""Load on a server with OpenAI's HTTP API, and what its clients see: `mistral-jax bench --url`."""
