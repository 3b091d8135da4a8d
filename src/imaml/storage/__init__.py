"""What is written to disk: checkpoints and artefacts."""
