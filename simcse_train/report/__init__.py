"""Reports on a run in words."""
