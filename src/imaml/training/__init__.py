"""The training loop, its directory on disk, and evaluation."""

from . import loggers as loggers
