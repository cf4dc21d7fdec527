"""Text files to batches: reading, tokenising, caching, shuffling, and labelled pairs."""
