"""A task's inner problem: its residual, and the structure of its Jacobian."""
