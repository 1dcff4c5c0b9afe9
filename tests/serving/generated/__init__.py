"""Requests generated from our own OpenAPI document, good and bad, to every endpoint: nothing makes a 5xx, a status or a
shape that is not described, or takes long. `python -m tests.serving.generated --requests 5000` sends as many as you
like."""
