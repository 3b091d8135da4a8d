"""Pages of what was learned."""
