"""One way to get an encoder: a `MultiVectorEncoder` of sentence-transformers, from a backbone or a checkpoint."""
