"""What every other package may use: errors, trees, loops, results; it knows none of them."""
