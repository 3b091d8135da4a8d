"""The training loop, its directory on disk, and evaluation."""
