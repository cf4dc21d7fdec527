"""Training objectives: losses on the embeddings of a batch, one file each."""
