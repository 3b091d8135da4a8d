"""Tasks of densities, imitation, generation and restoration."""
