"""Training: the loop, one step of it, what it logs, how it starts and stops."""
