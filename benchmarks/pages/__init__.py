"""The tables and pictures of README.md and docs/, made from result files."""
