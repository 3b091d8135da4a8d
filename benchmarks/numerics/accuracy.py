"""Whether an accuracy that is asked for is reached, and at what price beside the best fixed step counts.

    python -m benchmarks run accuracy

The problems are those of `certificates`, with strengths from 0.1 to 10. Asked for: 1e-2, 1e-4, 1e-6 of the
meta-gradient's norm, from theta after INNER steps of gradient descent. Fixed step counts: the pair (inner
steps, steps of conjugate gradients) with the fewest steps in all for which at least 99 % of a kind's problems
are below the request, found by search with the true errors in hand, which no user has. A gradient and a
Hessian-vector product count alike; those of Lanczos' bound, where one is needed, are not among them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

import imaml
from benchmarks.harness import benchmark, mapped
from benchmarks.numerics.certificates import KINDS, setting
from imaml.core.solution import bounded

ASKED = (1e-2, 1e-4, 1e-6)
INNER = 10
GRID = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
LINEAR = 120


def advanced(product, state):
    """Returns (solution, residual, direction) of conjugate gradients a step on."""
    x, r, p = state
    image, square = product(p), r @ r
    length = jnp.where(square > 0, square / (p @ image), 0)
    new = r - length * image
    return x + length * p, new, new + jnp.where(square > 0, new @ new / square, 0) * p


def iterates(product, b):
    """Returns the iterates of conjugate gradients after 1, 2, ..., LINEAR steps."""
    advance = lambda state, _: (advanced(product, state),) * 2  # noqa: E731
    return lax.scan(advance, (jnp.zeros_like(b), b, b), length=LINEAR)[1][0]


def measure(kind, key, strength):
    """One problem: what each request gave, and the true errors of all fixed step counts."""
    here = setting(kind, key, strength)
    begun = here.descended(here.flat, INNER)
    _, truth, reached = here.reference(begun)
    off = lambda gradient: jnp.linalg.norm(gradient - truth) / jnp.linalg.norm(truth)  # noqa: E731
    asked = []
    for accuracy in ASKED:
        rule = imaml.implicit(accuracy=accuracy, certify=True)
        implied = here.implied(rule, begun, jax.random.fold_in(key, 1))
        spent, certificate = implied.linear.stats.steps + INNER, implied.linear.status.certificate
        asked.append(jnp.stack([off(implied.gradient), 1.0 * spent, 1.0 * certificate]))

    def fixed(phi, more):
        phi = here.descended(phi, more)
        system = here.case.system(here.unravel(phi))
        product = lambda v: ravel_pytree(system.product(here.unravel(v)))[0]  # noqa: E731
        found = iterates(product, ravel_pytree(system.right)[0])
        gradient = lambda u: ravel_pytree(system.gradient(here.unravel(u)))[0]  # noqa: E731
        return phi, lax.map(lambda u: off(gradient(u)), found)

    _, errors = lax.scan(fixed, here.flat, jnp.diff(jnp.asarray(GRID), prepend=0))
    return {"asked": jnp.stack(asked), "fixed": errors, "reached": reached}


def row_of(kind, accuracy, asked, errors):
    """The figures of one request for one kind: asked (problems, 3), errors (problems, GRID, LINEAR)."""
    error, products, certificate = asked.T
    certified = bounded(certificate)
    cost = np.add.outer(np.array(GRID), np.arange(1, LINEAR + 1))
    below = np.nan_to_num(errors, nan=np.inf) <= accuracy
    best = np.where(below.mean(0) >= 0.99, cost, 10**9)
    inner, linear = np.unravel_index(best.argmin(), best.shape)
    each = np.where(below, cost, 10**9).min((1, 2))
    possible = best.min() < 10**9
    steps = {"inner": GRID[inner], "linear": linear + 1, "products": best.min()}
    uncertified = [c for c in imaml.Certification if not bounded(int(c))]
    row = {
        "kind": kind,
        "accuracy": accuracy,
        "problems": error.size,
        "certified": certified.mean(),
        "of_all_below": (error <= accuracy).mean(),
        "not_certified": {c.name: (certificate == int(c)).sum() for c in uncertified},
        "best_fixed": steps if possible else None,
    }
    if certified.any():
        spent = products[certified]
        row |= {
            "of_them_below": (error[certified] <= accuracy).mean(),
            "products": {"median": np.median(spent), "mean": spent.mean(), "max": spent.max()},
            "mean_over_best_fixed": spent.mean() / best.min() if possible else None,
            "median_over_each_problems_own_best": np.median((products / each)[certified & (each < 10**9)]),
        }
    return row


@benchmark("accuracy", quick={"each": 3}, double=True)
def main(run, each=100):
    """Measures `each` problems of each kind."""
    for kind in KINDS:
        random = np.random.default_rng(list(KINDS).index(kind))
        strengths = jnp.asarray(np.exp(random.uniform(np.log(0.1), np.log(10), each)))
        keys = jax.random.split(jax.random.key(random.integers(2**31)), each)
        found = mapped(functools.partial(measure, kind))(keys, strengths)
        good = found["reached"]
        for i, accuracy in enumerate(ASKED):
            row = row_of(kind, accuracy, found["asked"][good, i], found["fixed"][good])
            run.add(row | {"without_reference": (~good).sum()}, inner_steps_before=INNER)
