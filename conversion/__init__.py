"""Files of models, adapters and tokenizers to arrays and plain data, and back. Knows neither model nor server."""
