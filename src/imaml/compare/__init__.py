"""Methods compared on the same tasks."""
