"""The GGUF file format itself: header, metadata, tensors as bytes, and a writer. The meaning of the metadata belongs to
the folder above."""
