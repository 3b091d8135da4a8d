"""A user's own tasks: what they come from, how they are stored, and the domain that draws them."""
