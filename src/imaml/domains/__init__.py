"""Families of tasks, one file each, and the readers of their data."""
