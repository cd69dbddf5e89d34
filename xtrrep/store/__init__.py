"""Token embeddings: made, imported, read."""
