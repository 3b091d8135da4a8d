"""A run as nested frozen dataclasses."""
