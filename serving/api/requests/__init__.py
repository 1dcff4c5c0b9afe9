"""From the bytes of a body to engine requests: reading within limits, known and unknown fields, prompts, sampling,
adapters."""
