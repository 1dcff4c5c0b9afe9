"""The log-probabilities of tokens in the shapes that the APIs have for them."""
