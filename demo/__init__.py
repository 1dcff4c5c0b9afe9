"""How the bundled model "demo" is made: its corpus, its tokenizer, its training and its evaluation.

Nothing here is needed to serve the model; the result lies in `mistral_jax/hub/bundled/demo/`.
"""
