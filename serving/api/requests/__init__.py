"""From the bytes of a body to requests for the engine: reading within limits, fields known and unknown, prompts,
sampling, adapters."""
