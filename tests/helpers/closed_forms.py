"""Closed forms of the tasks of `imaml.linear_gaussian`: the oracle of solvers and rules.

With H = X^T X / n and c = X^T y / n of the support, the inner solution is (H + s I)^-1 (c + s theta), and a
task's meta-gradient s (H + s I)^-1 (H_q phi* - c_q).
"""

import jax.numpy as jnp


def _solve(support, strength, right):
    """(H + strength I)^-1 right."""
    inputs = support.inputs
    matrix = inputs.T @ inputs / inputs.shape[0] + strength * jnp.eye(inputs.shape[1])
    return jnp.linalg.solve(matrix, right)


def solution(theta, support, strength):
    """The inner solution, (features,)."""
    rows = support.targets.shape[0]
    return _solve(support, strength, support.inputs.T @ support.targets / rows + strength * theta)


def meta_gradient(theta, task, strength):
    """One task's meta-gradient, (features,)."""
    support, query = task
    error = query.inputs @ solution(theta, support, strength) - query.targets
    return strength * _solve(support, strength, query.inputs.T @ error / query.targets.shape[0])
