"""The Bayesian interpretation: theta is the mean of a prior."""
