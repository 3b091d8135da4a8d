"""Inner solvers: from theta and a task to adapted parameters."""
