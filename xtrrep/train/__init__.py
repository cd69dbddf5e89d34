"""Training: the loss of setup (I) and the loop around sentence-transformers' trainer."""
