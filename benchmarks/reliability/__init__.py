"""What a run withstands."""
