"""Embeddings of whole texts, and nearest neighbours among them."""
