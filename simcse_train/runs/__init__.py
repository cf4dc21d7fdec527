"""Run folders: the names inside them, checkpoints, metrics, atomic writes."""
