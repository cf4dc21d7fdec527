"""Pages that a browser on this machine opens: search, and the blind comparison."""
