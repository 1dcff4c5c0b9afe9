"""GGUF files: opening them, what their metadata mean, and writing new ones.

`container` opens files and makes new ones, `config` and `tokenizer` translate its metadata to what a Hugging Face
folder has, `source` gives its tensors under Hugging Face's names. In the other direction `from_config` and
`from_tokenizer` make metadata, and `writer` makes files.
"""

from conversion.gguf.container.file import GGUFError, GGUFFile, TensorInfo

__all__ = ["GGUFError", "GGUFFile", "TensorInfo"]
