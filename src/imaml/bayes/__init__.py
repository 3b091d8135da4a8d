"""The Bayesian reading: theta is the mean of a prior."""
