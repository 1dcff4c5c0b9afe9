"""The GGUF file format itself: header, metadata, tensors as bytes, and a writer. What the metadata mean is one room
up."""
