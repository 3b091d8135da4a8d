"""Linear solvers for the implicit gradient."""
