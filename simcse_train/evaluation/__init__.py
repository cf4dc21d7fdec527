"""Evaluation of an encoder: semantic textual similarity, and measures that need no labels."""
