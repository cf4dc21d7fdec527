"""Sentence encoders: loading, packed batches, pooling, dropout, saving."""
