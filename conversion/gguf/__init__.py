"""GGUF files: opening them, translating their metadata, and writing new ones.

`container` opens and writes files, `config` and `tokenizer` translate metadata to the files of a Hugging Face folder,
`source` gives the tensors under Hugging Face's names. In the other direction `writing` makes metadata and a type for
each tensor.
"""

from conversion.gguf.container.file import GGUFError, GGUFFile, TensorInfo

__all__ = ["GGUFError", "GGUFFile", "TensorInfo"]
