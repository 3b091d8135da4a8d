"""Tasks read from tables."""
