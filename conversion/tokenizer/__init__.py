"""The files of tokenizers and chat templates: reading them into plain data, and writing them. Nothing here encodes
text."""
