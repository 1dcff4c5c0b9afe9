"""The jitted programs and the loop that drives them: admit, prefill, decode, sampling, adapters in a batch, warm-up.

Tokens in, tokens out: no text, no files, no HTTP."""
