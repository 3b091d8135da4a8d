"""What a meta-step, a start and an adaptation take: time and memory."""
