"""A search for certified bounds that are broken: problems whose true error is above what was certified.

    python -m benchmarks run adversarial

`certificates` draws problems as they occur; here they are looked for. A problem is what a flat
vector z, standard normal where drawn, is mapped to: support set, theta, strength and inner solver; a phi,
where that solver ends or anywhere about the solution; query rows, and query targets as offsets from what phi
predicts, so that v = d query_loss / d phi may be small, or orthogonal to a Newton step, to the last digit.
Three strategies make error / (bound + tolerance) large: random draws; CMA-ES (the package `cma`); and ascent
from the best, by differences (where a change is exactly 0, as it often is here, the certificate's norms have
no derivative).

The reference is dense, in float64, at the solutions that Newton's method goes to from phi, damped, in full,
and by conjugate gradients as the certificate does: a bound is broken if it is so at each of them. (With
Gauss-Newton curvature a saddle of the loss is one, too: F is 0 there, and the system definite.) That of ridge
regression is solved in numpy's long double. Set aside and counted are evaluations whose reference may be off
by a tenth of the tolerance, whose system is indefinite at the nearest of these solutions, or whose inner
solver has left them all far behind.

A violation is an error above bound + tolerance * max(|true gradient|, |computed gradient|), the tolerance
1e-9 in float64 and 1e-4 in float32. Of those, `rounding` exceed the bound by at most NOISES times what the
true gradient changes by where all data change in their last place, so that rounding alone may do it. A strict
one is an error above bound * (1 + tolerance): of bounds near zero, most often rounding.

Certificates with random probes may be wrong with a small probability. All have one key here, so a search may
find a problem for which just that one is unlucky: violations are tried again with others, and what share of
these break the bound is written beside them.
"""

import functools
import os
import time
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import imaml
from benchmarks.harness import benchmark
from imaml.core.loops import repeat_while
from imaml.linear.cg import conjugate_gradients
from imaml.meta.system import Case, linear_outer_loss, outer_loss_of

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
NOISES = 100
KEYS = 16  # other random keys that a violation is tried with
RETRIED = 32  # violations of a row that are
ACCURACY = 1e-3  # asked for, by the variant "accuracy"
SOLVERS = (imaml.CG(steps=1), imaml.CG(steps=2), imaml.CG(steps=5), imaml.Dense())
SHARES = {"random": 0.4, "cma": 0.3, "ascent": 0.3}  # of the evaluations, in proportion, by those chosen
BATCH = 256  # problems in one call
CROWDS = 8  # runs of CMA-ES side by side, whose generations fill a batch
CLIMBERS = 8  # points in ascent side by side
STEPS = np.array([1, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6])  # lengths of ascent, tried together
REACH = {"float64": 1e-5, "float32": 1e-2}  # of differences
UNCERTIFIED, LOST = -20.0, -60.0  # heights, in place of log(error / limit)
KEPT = 500  # violations of a row in full, the highest first; all are counted
# Compiling is most of a row's time; without optimisation it takes a third, and problems this small no longer.
# Not in float32: XLA's unoptimised tanh saturates at 1 - 6e-8, not at 1; its derivative at 1e-7, not at 0.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@dataclass(frozen=True)
class Chosen:
    """One of SOLVERS by a traced number, so that one compilation does for all: all run, and one is taken."""

    number: Any
    accepts: ClassVar[tuple[str, ...]] = ("spd",)

    def __call__(self, matvec, b, x0=None, *, structure="spd"):
        found = [solver(matvec, b, x0, structure=structure) for solver in SOLVERS]
        # Their coefficients differ in length, and only the estimate looks at them.
        bare = [replace(one, stats=replace(one.stats, lanczos=None)) for one in found]
        return jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)])[self.number], *bare)


@dataclass(frozen=True)
class Kind:
    """A family of problems: what a model makes of inputs, its loss, and what is declared of it.

    score: (phi, inputs) -> (rows,). shapes: of theta, a tree. rows: in the support and in the query set.
    linear: whether phi is flat and scores are its products with the inputs.
    """

    score: Callable
    shapes: Any
    rows: tuple[int, int]
    features: int
    options: dict = field(default_factory=dict)
    logistic: bool = False
    linear: bool = False

    @property
    def zeros(self):
        """A tree like theta."""
        return jax.tree.map(jnp.zeros, self.shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def cost(self, scores, batch):
        """The mean loss of scores."""
        if self.logistic:
            return jnp.mean(jnp.logaddexp(0, scores) - batch[1] * scores)
        return 0.5 * jnp.mean((scores - batch[1]) ** 2)

    def loss(self, phi, batch):
        """The mean loss of parameters."""
        return self.cost(self.score(phi, batch[0]), batch)

    def predicted(self, scores):
        """The targets at which the loss is flat in the scores."""
        return jax.nn.sigmoid(scores) if self.logistic else scores

    def problem(self, variant, strength):
        """The inner problem, of a variant."""
        outputs = lambda phi, batch: self.score(phi, batch[0])  # noqa: E731
        loss = imaml.composed(outputs, self.cost) if "curvature" in self.options else self.loss
        strength = imaml.learned(1.0, "all") if variant == "learned" else strength
        return imaml.proximal(loss, strength, **self.options)

    def theta(self, variant, mean, strength):
        """Theta, of a variant."""
        return imaml.Theta(mean, log_strength=jnp.log(strength)) if variant == "learned" else mean


def line(phi, inputs):
    """A linear model."""
    return inputs @ phi


def network(phi, inputs):
    """A network 2-3-1 with tanh, of 13 numbers."""
    hidden = jnp.tanh(inputs @ phi[:6].reshape(2, 3) + phi[6:9])
    return hidden @ phi[9:12] + phi[12]


def headed(activate):
    """A model of two layers, of which the head is adapted."""
    return lambda phi, inputs: activate(inputs @ phi["body"]) @ phi["head"]


CONVEX, SHARED = {"convex": True}, {"adapt": "head"}
GAUSS, BOTH = {"curvature": "gauss-newton"}, {"body": (2, 2), "head": (2,)}
KINDS = {
    "ridge, 2": Kind(line, (2,), (2, 1), 2, CONVEX, linear=True),
    "ridge, 4": Kind(line, (4,), (4, 2), 4, CONVEX, linear=True),
    "ridge, 2, undeclared": Kind(line, (2,), (2, 2), 2, linear=True),
    "logistic, 1": Kind(line, (1,), (2, 1), 1, CONVEX, logistic=True),
    "logistic, 2": Kind(line, (2,), (2, 1), 2, CONVEX, logistic=True, linear=True),
    "logistic, 4": Kind(line, (4,), (4, 2), 4, CONVEX, logistic=True, linear=True),
    "network": Kind(network, (13,), (3, 2), 2),
    "network, Gauss-Newton": Kind(network, (13,), (3, 2), 2, GAUSS),
    "head, linear": Kind(headed(lambda x: x), BOTH, (2, 2), 2, SHARED | CONVEX),
    "head, tanh, undeclared": Kind(headed(jnp.tanh), BOTH, (2, 2), 2, SHARED),
}
# constant: implicit_vjp's cotangent. rough, probed: recipes that leave a bound more to bound (see `recipe`).
VARIANTS = ("plain", "correct", "accuracy", "constant", "learned", "rough", "probed")
DOUBLE = {kind: [(variant, "float64") for variant in VARIANTS] for kind in KINDS}
SINGLE = {kind: [(variant, "float32") for variant in VARIANTS[:3]] for kind in KINDS if kind.endswith("2")}
SINGLE["network"] = SINGLE["ridge, 2"][:2]
ROWS = {kind: DOUBLE[kind] + SINGLE.get(kind, []) for kind in KINDS}


# What is searched over, before it is mapped into its ranges. reach: the decades that data entries span.
# placed: whether phi is placed about the solution. across: which direction the query rows, and v, may be
# orthogonal to.
Free = namedtuple(
    "Free",
    "inputs targets query offsets theta reach strength rate steps placed direction distance solver across "
    "rows_across slope_across",
)


def free(kind):
    """A Free of zeros, of a kind."""
    rows, query = kind.rows
    arrays = {"inputs": jnp.zeros((rows, kind.features)), "targets": jnp.zeros(rows)}
    arrays |= {"query": jnp.zeros((query, kind.features)), "offsets": jnp.zeros(query)}
    arrays |= {
        "theta": ravel_pytree(kind.zeros)[0],
        "direction": ravel_pytree(kind.problem("plain", 1.0).split(kind.zeros))[0],
    }
    return Free(**{name: arrays.get(name, jnp.zeros(())) for name in Free._fields})


def entries(z, reach):
    """Numbers of either sign, log-uniform from 1e-3 to 10^reach but smooth through 0."""
    return 1e-3 * jnp.sinh(jnp.log(2e3 * 10**reach) * (2 * norm.cdf(z) - 1))


def between(z, low, high):
    """A number, log-uniform."""
    return jnp.exp(jnp.log(low) + norm.cdf(z) * jnp.log(high / low))


def one_of(z, count):
    """A whole number below `count`."""
    return jnp.minimum((norm.cdf(z) * count).astype(int), count - 1)


def unit(vector):
    """A vector of length 1, or 0."""
    size = jnp.linalg.norm(vector)
    return vector / jnp.where(size > 0, size, 1)


def rejected(z, vectors, direction):
    """Vectors less their share along a unit direction: for two in five z all of it, for two nothing."""
    share = jnp.clip(0.5 + 2 * z, 0, 1)
    return vectors - share * (vectors @ direction)[..., None] * direction


def cast(tree, dtype):
    """A tree of floats in another precision."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


GIVEN = ("support_inputs", "support_targets", "query_inputs", "query_targets", "cotangent")
GIVEN += ("theta", "strength", "phi", "star", "solver")  # a problem's numbers, but for its random key


# A task's numbers. mean: theta, but for a learned strength. phi: flat. cotangent: None but for one variant.
Data = namedtuple("Data", "support mean strength phi query cotangent", defaults=(None, None))


@dataclass(frozen=True)
class Flat:
    """A task's problem over flat vectors of its adapted parameters."""

    kind: Kind
    variant: str
    data: Data

    @property
    def problem(self):
        return self.kind.problem(self.variant, self.data.strength)

    @property
    def theta(self):
        return self.kind.theta(self.variant, self.data.mean, self.data.strength)

    @property
    def start(self):
        """The part of theta that is adapted."""
        return ravel_pytree(self.problem.split(self.data.mean))[0]

    def tree(self, p):
        """The adapted parameters."""
        return ravel_pytree(self.problem.split(self.data.mean))[1](p)

    def scores(self, p, inputs):
        """Those of the model."""
        return self.kind.score(self.problem.full(self.tree(p), self.theta), inputs)

    def slope(self, p):
        """F."""
        return ravel_pytree(self.problem.residual(self.tree(p), self.theta, self.data.support))[0]

    def objective(self, p):
        """What F is the gradient of."""
        return self.problem.objective(self.tree(p), self.theta, self.data.support)

    def matrix(self, p):
        """The system's: Gauss-Newton's where the problem has that."""
        return jax.jacfwd(self.slope)(p)

    def newton(self, p):
        """A Newton step, in full."""
        return p - jnp.linalg.solve(jax.hessian(self.objective)(p), self.slope(p))

    def damped(self, start):
        """Where Newton's method with absolute curvatures and a line search ends."""

        def advance(state):
            p, _, count = state
            curved, slope = jax.hessian(self.objective)(p), self.slope(p)
            good = jnp.all(jnp.isfinite(curved))  # LAPACK need not end where not
            values, vectors = jnp.linalg.eigh(jnp.where(good, curved, jnp.eye(p.size)))
            size = jnp.maximum(jnp.abs(values), 1e-14 * jnp.max(jnp.abs(values)))
            step = vectors @ ((vectors.T @ slope) / size)
            tries = p - jnp.append(0.5 ** jnp.arange(16.0), 0)[:, None] * step
            heights = jax.vmap(self.objective)(tries)
            new = tries[jnp.argmin(jnp.where(jnp.isnan(heights), jnp.inf, heights))]
            return new, jnp.linalg.norm(new - p), count + 1

        going = lambda s: (s[2] < 60) & (s[1] > 1e-7 * jnp.linalg.norm(s[0]))  # noqa: E731
        return repeat_while(going, advance, (start, jnp.asarray(jnp.inf), 0))[0]

    def polished(self, p, steps=4):
        """After some Newton steps in full."""
        return lax.fori_loop(0, steps, lambda _, p: self.newton(p), p)

    def solutions(self, p):
        """Those that Newton's method goes to from p: damped, in full, after a system's step, and by CG.

        The last is where the certificate's own Newton steps end: the solution that its bound is about.
        """
        step = jnp.linalg.solve(self.matrix(p), self.slope(p))
        followed = imaml.implicit(accuracy=1e-9, certify=True).at(self.case, self.tree(p), jax.random.key(0))
        starts = jnp.stack([self.damped(p), p, p - step, ravel_pytree(self.problem.split(followed.phi))[0]])
        return jax.vmap(lambda start: self.polished(start, 15))(starts)

    def descended(self, rate, steps):
        """After so many steps of gradient descent, the rate relative to the steepest curvature known."""
        ends = jnp.stack([self.start, 0 * self.start])
        steepest = jnp.max(jnp.abs(jnp.linalg.eigvalsh(jax.vmap(self.matrix)(ends))))
        return lax.fori_loop(0, steps, lambda _, p: p - rate / steepest * self.slope(p), self.start)

    def directions(self, p, star):
        """Those that v may be orthogonal to: Newton steps, as far as CG may go for them, and p's error."""
        slope, product = jax.linearize(self.slope, p)
        size, root = jnp.linalg.norm(slope), jnp.finfo(slope.dtype).eps ** 0.5
        limits = ((1, 0), (2, 0), (50, 0.01), (50, root))  # most products, and share of F left
        steps = [conjugate_gradients(product, slope, most, share * size).x for most, share in limits]
        return jnp.stack([unit(vector) for vector in (*steps, p - star)])

    @property
    def judge(self):
        """What judges phi: the query loss, or a constant cotangent."""
        if self.data.cotangent is not None:
            return linear_outer_loss(self.data.cotangent, self.theta)
        loss = lambda phi, theta, batch: self.kind.loss(phi, batch)  # noqa: E731
        return outer_loss_of(loss, self.theta, self.data.query)

    @property
    def case(self):
        """What the library is given."""
        return Case(self.problem, self.theta, self.data.support, self.judge)

    def truth(self, star):
        """The exact meta-gradient, how far it may be off, the condition number, whether star is a solution.

        The condition number is negative where the system is indefinite.
        """

        def at(p):
            exact, matrix = self.case.system(self.tree(p)), self.matrix(p)
            right = ravel_pytree(exact.right)[0]
            u = jnp.linalg.solve(matrix, right)
            refined = u + jnp.linalg.solve(matrix, right - matrix @ u)
            return [ravel_pytree(exact.gradient(self.tree(x)))[0] for x in (u, refined)]

        nearer = self.newton(star)
        (_, before), (rough, found) = at(star), at(nearer)
        matrix = self.matrix(nearer)
        values = jnp.linalg.eigvalsh(jnp.where(jnp.all(jnp.isfinite(matrix)), matrix, 0))
        doubt = jnp.linalg.norm(found - before) + jnp.linalg.norm(found - rough)
        solved = (jnp.linalg.norm(nearer - star) <= 1e-9 * jnp.linalg.norm(nearer)) & jnp.isfinite(doubt)
        return found, doubt, values[-1] / values[0], solved


def perturbed(data, dtype, count=4):
    """The data, all numbers changed about in their last place, `count` times."""
    flat, unravel = ravel_pytree(data)
    changes = jax.random.normal(jax.random.key(1), (count, flat.size)) * jnp.finfo(dtype).eps
    return jax.vmap(unravel)(flat * (1 + changes))


def drawn(kind, variant, dtype, z):
    """The numbers of the problem that a flat z means, float64 ones that `dtype` holds; see `measure`."""
    asked = ravel_pytree(free(kind))[1](z)
    rounded = lambda tree: cast(cast(tree, dtype), jnp.float64)  # noqa: E731
    reach = 3 * norm.cdf(asked.reach)
    targets = norm.cdf(asked.targets) if kind.logistic else entries(asked.targets, reach)
    mean = ravel_pytree(kind.zeros)[1](entries(asked.theta, 1))
    data = Data((entries(asked.inputs, reach), targets), mean, between(asked.strength, 1e-3, 10.0), None)
    flat = Flat(kind, variant, rounded(data))

    steps = jnp.floor(between(asked.steps, 1.0, 201.5)).astype(int) - 1
    descended = flat.descended(1.9 * norm.cdf(asked.rate), steps)
    star, placed = flat.polished(flat.damped(descended)), asked.placed > 0
    about = star + between(asked.distance, 1e-8, 10.0) * unit(asked.direction)
    phi = rounded(jnp.where(placed, about, descended))

    across = flat.directions(phi, star)[one_of(asked.across, 5)]
    inputs, offsets = entries(asked.query, reach), entries(asked.offsets, 2)
    if kind.linear:
        inputs = rejected(asked.rows_across, inputs, across)
    scores = lambda p: flat.scores(p, inputs)  # noqa: E731
    if kind.rows[1] > 1:  # v = -mean(offsets * the scores' derivatives)
        along = jax.jvp(scores, (phi,), (across,))[1]
        offsets = rejected(asked.slope_across, offsets, unit(along))
    data = flat.data._replace(phi=phi, query=rounded((inputs, kind.predicted(scores(phi)) + offsets)))
    given = dict(zip(GIVEN, (*data.support, *data.query), strict=False))
    given |= {"theta": ravel_pytree(data.mean)[0], "strength": data.strength, "phi": phi, "star": star}
    given |= {"solver": one_of(asked.solver, len(SOLVERS)), "key": 0}
    given["inner_steps"] = jnp.where(placed, -1, steps)
    if variant == "constant":
        flat = replace(flat, data=data)
        slope = flat.judge(flat.problem.full(flat.tree(phi), flat.theta)).slope
        given["cotangent"] = ravel_pytree(rounded(slope))[0]
    return given


def data_of(kind, given):
    """The Data of numbers drawn."""
    unravel = ravel_pytree(kind.zeros)[1]
    cotangent = unravel(given["cotangent"]) if "cotangent" in given else None
    support, query = ((given[f"{part}_inputs"], given[f"{part}_targets"]) for part in ("support", "query"))
    return Data(support, unravel(given["theta"]), given["strength"], given["phi"], query, cotangent)


def answered(flat, solver, key):
    """What the library computes and claims: the flat meta-gradient, and the linear Solution."""
    data, case = flat.data, flat.case
    adapted, linear = flat.tree(data.phi), Chosen(solver)
    if flat.variant == "constant":
        parameters = case.problem.full(adapted, case.theta)
        given = (case.problem, parameters, case.theta, case.batch, data.cotangent)
        gradient, solution = imaml.implicit_vjp(*given, linear=linear, certify=recipe(flat.variant), key=key)
    else:
        rule = imaml.implicit(linear, certify=recipe(flat.variant), correct=flat.variant == "correct")
        if flat.variant == "accuracy":
            rule = imaml.implicit(accuracy=ACCURACY, certify=True)
        implied = rule.at(case, adapted, key)
        gradient, solution = implied.gradient, implied.linear
    return cast(ravel_pytree(gradient)[0], jnp.float64), solution


def recipe(variant):
    """The certificate of a variant.

    By default Newton steps go on until the bound is nearly the error itself. Rough ones refine phi little, so
    that most of the bound is made of constants; probed ones have these from random directions.
    """
    rough = {"steps": 1, "rounds": 2, "tolerance": 0.9}
    asked = {"rough": rough, "probed": rough | {"dense": 0}}.get(variant)
    return imaml.Certificate(**asked) if asked else True


def claimed(variant, computed, solution):
    """The error that a certified Solution allows; an accuracy that was reached is a bound, too."""
    bound = jnp.asarray(solution.stats.error_bound, jnp.float64)
    if variant != "accuracy":
        return bound
    reached = solution.status.code == int(imaml.Ending.CONVERGED)
    return jnp.where(reached, jnp.minimum(bound, ACCURACY * jnp.linalg.norm(computed)), bound)


def measure(kind, variant, dtype, given):
    """What is said of a problem drawn, beside the truth."""
    flat = Flat(kind, variant, data_of(kind, given))
    data, star = flat.data, given["star"]
    single = replace(flat, data=cast(data, dtype))
    computed, solution = answered(single, given["solver"], jax.random.key(given["key"]))

    ends = jnp.stack([star] if kind.options.get("convex") else [star, *flat.solutions(data.phi)])
    truths, doubts, conditions, solved = jax.vmap(flat.truth)(ends)
    errors, good = jnp.linalg.norm(computed - truths, axis=-1), solved & (conditions > 0)
    distances = jnp.linalg.norm(data.phi - ends, axis=-1)
    nearest = jnp.argmin(jnp.where(solved, distances, jnp.inf))
    best = jnp.argmin(jnp.where(good, errors, jnp.inf))
    true, end = truths[best], ends[best]
    others = jax.vmap(lambda other: replace(flat, data=other).truth(end)[0])(perturbed(data, dtype))
    noise = jnp.max(jnp.linalg.norm(others - true, axis=-1))
    doubt = doubts[best] + 4 * noise * jnp.finfo(true.dtype).eps / jnp.finfo(dtype).eps
    size = jnp.maximum(jnp.linalg.norm(true), jnp.linalg.norm(computed))
    near = distances[best] <= 10 + jnp.linalg.norm(end) if len(ends) > 1 else True
    reached = good[best] & good[nearest] & near & (doubt <= 0.1 * TOLERANCE[dtype] * size)
    found = {"error": errors[best], "bound": claimed(variant, computed, solution), "size": size}
    found |= {"noise": noise, "reached": reached, "certified": solution.certified}
    found |= {"code": solution.status.certificate, "ending": solution.status.code}
    found |= {"condition": conditions[best], "distance": distances[best]}
    return found | {"computed": computed, "true": true}


@functools.cache
def compiled(function, name, variant, dtype):
    """`drawn` or `measure` of a batch, one after another: side by side all take as long as the longest.

    They are two programs, as a single one may compute a number twice, and round it in two ways.
    """
    one = functools.partial(function, KINDS[name], variant, dtype)
    as_it_is = jax.config.read("jax_disable_most_optimizations") or dtype == "float32"
    return jax.jit(lambda batch: lax.map(one, batch), compiler_options=None if as_it_is else QUICK)


def eliminated(matrix, right):
    """Solutions of many positive definite systems, in whatever precision they come."""
    rows = np.concatenate([matrix, right[..., None]], -1)
    for pivot in range(right.shape[-1]):
        rows[:, pivot] /= rows[:, pivot, pivot, None]
        for row in range(right.shape[-1]):
            if row != pivot:
                rows[:, row] -= rows[:, row, pivot, None] * rows[:, pivot]
    return rows[..., -1]


def exact_ridge(found):
    """The meta-gradients of linear regressions in long double, and by how much they may be off."""
    long = {k: v.astype(np.longdouble) for k, v in found.items() if v.dtype == np.float64}
    times = lambda matrix, vector: np.einsum("...ij,...j->...i", matrix, vector)  # noqa: E731
    mean = lambda rows: rows.swapaxes(1, 2) / rows.shape[1]  # noqa: E731
    names = ("support_inputs", "query_inputs", "strength", "theta")
    inputs, query, strength, theta = (long[name] for name in names)
    matrix = np.einsum("...ij,...jk->...ik", mean(inputs), inputs)
    matrix = matrix + strength[:, None, None] * np.eye(theta.shape[1])
    scaled = strength[:, None]

    def solved(right, refine):
        found = eliminated(matrix, right)
        return found + eliminated(matrix, right - times(matrix, found)) if refine else found

    def gradient(refine):
        star = solved(times(mean(inputs), long["support_targets"]) + scaled * theta, refine)
        right = long.get("cotangent", times(mean(query), times(query, star) - long["query_targets"]))
        u = solved(right, refine)
        more = -scaled * np.sum(u * (star - theta), -1, keepdims=True)  # along the logarithm of the strength
        return np.concatenate([scaled * u, more], -1)[:, : found["true"].shape[1]]

    true = gradient(True)
    return true, lengths(true - gradient(False))


def lengths(vectors):
    """Those of rows, in float64."""
    return np.linalg.norm(vectors.astype(np.float64), axis=-1)


def height(found, dtype):
    """What is searched for the maximum of: log(error / limit); uncertified, the less the farther from it.

    limit: the bound, the tolerance, and what rounding may do, which else would be all that is found.
    """
    limit = found["bound"] + TOLERANCE[dtype] * found["size"] + NOISES * found["noise"]
    with np.errstate(all="ignore"):
        ratio = np.log(found["error"] / limit)
        far = np.log10(1 + found["distance"] * found["condition"])
    ratio = np.clip(np.nan_to_num(ratio, nan=UNCERTIFIED), UNCERTIFIED + 1, None)
    far = np.clip(np.nan_to_num(far, nan=30, posinf=30), 0, 30)
    return np.where(found["reached"], np.where(found["certified"], ratio, UNCERTIFIED - far), LOST)


def in_batches(function, many):
    """A compiled function of any number of rows, always called with BATCH, the last row again and again."""
    parts, count = [], len(jax.tree.leaves(many)[0])
    for first in range(0, count, BATCH):
        rows = np.minimum(np.arange(first, first + BATCH), count - 1)
        parts.append(jax.tree.map(np.asarray, function(jax.tree.map(lambda leaf: leaf[rows], many))))  # noqa: B023
    return {k: np.concatenate([part[k] for part in parts])[:count] for k in parts[0]}


def judged(name, variant, dtype, given):
    """What is said of problems drawn, each number with a leading axis, beside the truth, with heights."""
    found = given | in_batches(compiled(measure, name, variant, dtype), given)
    if name.startswith("ridge"):
        with np.errstate(all="ignore"):
            true, doubt = exact_ridge(found)
        found["error"], found["true"] = lengths(found["computed"] - true), true.astype(np.float64)
        found["size"] = np.maximum(lengths(true), lengths(found["computed"]))
        # Rounding acts on the data, too, which a refinement with the same rounded matrix does not see.
        doubt += 4 * found["noise"] * float(np.finfo(np.longdouble).eps / np.finfo(dtype).eps)
        found["reached"] = doubt <= 0.1 * TOLERANCE[dtype] * found["size"]
    broken = found["reached"] & found["certified"]
    broken &= found["error"] > found["bound"] + TOLERANCE[dtype] * found["size"]
    return found | {"height": height(found, dtype), "broken": broken}


def replayed(row, problems, keys=(0,)):
    """What is said of problems that a row has in full, each with each of some random keys, as `judged`."""
    names = [name for name in GIVEN if name in problems[0]]
    given = {name: np.repeat([problem[name] for problem in problems], len(keys), 0) for name in names}
    given["key"] = np.tile(keys, len(problems))
    return judged(row["kind"], row["variant"], row["dtype"], given)


class Ledger:
    """What a search has evaluated: counts, the best z, and the violations."""

    def __init__(self, name, variant, dtype):
        self.name, self.variant, self.dtype = name, variant, dtype
        self.size = ravel_pytree(free(KINDS[name]))[0].size
        self.z, self.heights = np.zeros((0, self.size)), np.zeros(0)
        self.spent, self.codes, self.without = Counter(), Counter(), Counter()
        self.counts = {key: Counter() for key in ("certified", "violations", "rounding", "strict_violations")}
        self.ratios, self.worst, self.kept = [-np.inf, -np.inf], None, []

    def __call__(self, strategy, z):
        """The heights of rows of z, which are counted."""
        row = (self.name, self.variant, self.dtype)
        found = judged(*row, in_batches(compiled(drawn, *row), z))
        self.spent[strategy] += len(z)
        self.count(strategy, found)
        self.z, heights = np.concatenate([self.z, z]), np.concatenate([self.heights, found["height"]])
        best = np.argsort(-heights, kind="stable")[: 4 * BATCH]
        self.z, self.heights = self.z[best], heights[best]
        return found["height"]

    def count(self, strategy, found):
        """Counts codes and violations; keeps these, and the worst."""
        tolerance, error, bound = TOLERANCE[self.dtype], found["error"], found["bound"]
        names = np.array([imaml.Certification(int(code)).name for code in found["code"]])
        grades = np.where(names == "PROVED", "proved", "certified")
        reached, judged = found["reached"], found["reached"] & found["certified"]
        self.codes.update(names[reached].tolist())
        self.without.update(found["certified"][~reached].tolist())
        limit, broken = bound + tolerance * found["size"], found["broken"]
        subsets = {
            "certified": judged,
            "violations": broken,
            "rounding": broken & (error <= bound + NOISES * found["noise"]),
            "strict_violations": judged & (error > bound * (1 + tolerance)),
        }
        for key, subset in subsets.items():
            self.counts[key].update(grades[subset].tolist())
        self.kept += [self.written(strategy, found, row) for row in np.flatnonzero(broken)]
        self.kept = sorted(self.kept, key=lambda one: -one["height"])[:KEPT]
        if judged.any():
            with np.errstate(all="ignore"):
                ratios = [np.nanmax(np.log10(error / at)[judged], initial=-np.inf) for at in (limit, bound)]
            self.ratios = np.maximum(self.ratios, ratios)
            top = int(np.argmax(np.where(judged, found["height"], -np.inf)))
            if self.worst is None or found["height"][top] > self.worst["height"]:
                self.worst = self.written(strategy, found, top)

    def written(self, strategy, found, row):
        """One evaluation in full, as plain numbers."""
        plain = {k: np.asarray(v[row]).tolist() for k, v in found.items()}
        plain["code"] = imaml.Certification(plain["code"]).name
        plain["ending"] = imaml.Ending(plain["ending"]).name
        plain["linear"] = None if self.variant == "accuracy" else repr(SOLVERS[plain["solver"]])
        plain["inner_steps"] = plain["inner_steps"] if plain["inner_steps"] >= 0 else None  # phi was placed
        return {"strategy": strategy, **plain}

    def row(self):
        """The figures, and the data of the worst and of all violations kept."""
        graded = lambda counter: {grade: counter[grade] for grade in ("proved", "certified")}  # noqa: E731
        counts = {key: graded(counter) for key, counter in self.counts.items()}
        finite = [float(ratio) if np.isfinite(ratio) else None for ratio in self.ratios]
        row = {"kind": self.name, "variant": self.variant, "dtype": self.dtype}
        row |= {"evaluations": sum(self.spent.values()), "strategies": dict(self.spent)}
        row |= {"without_reference": sum(self.without.values()), "of_them_certified": self.without[True]}
        row |= {"codes": dict(self.codes), **counts}
        row["worst_log10"], row["worst_log10_strict"] = finite  # of error / (bound + tolerance), / bound
        return row | {"worst": self.worst, "found": self.kept}

    def retried(self, row):
        """The row, its highest violations tried with other keys."""
        few = row["found"][:RETRIED]
        if few:
            broken = replayed(row, few, range(1, KEYS + 1))["broken"].reshape(len(few), KEYS)
            for one, share in zip(few, broken.mean(1), strict=True):
                one["broken_by_other_keys"] = float(share)
        most = sum(one["broken_by_other_keys"] > 0.5 for one in few)
        return row | {"retried": len(few), "broken_by_most_keys": most}


def draw(ledger, budget, random):
    """Random restarts."""
    for first in range(0, budget, BATCH):
        ledger("random", random.normal(size=(min(BATCH, budget - first), ledger.size)))


def evolve(ledger, budget, random):
    """CMA-ES, several runs side by side, from the best so far or from any, and anew where one has ended."""
    import cma

    each = BATCH // CROWDS

    def begun():
        start = ledger.z[random.integers(min(len(ledger.z), random.choice([32, len(ledger.z)])))]
        options = {"popsize": each, "verbose": -9, "seed": int(random.integers(1, 2**31))}
        return cma.CMAEvolutionStrategy(start, 10 ** random.uniform(-2, 0), options)

    runs = [begun() for _ in range(CROWDS)]
    for _ in range(round(budget / BATCH)):
        asked = [run.ask() for run in runs]
        heights = ledger("cma", np.concatenate([np.stack(points) for points in asked])).reshape(CROWDS, each)
        for run, points, found in zip(runs, asked, heights, strict=True):
            run.tell(points, (-found).tolist())
        runs = [begun() if run.stop() else run for run in runs]


def climb(ledger, budget, random):
    """Ascent from the best certified or from any, each step the best of some lengths along the slope."""
    reach, size = REACH[ledger.dtype], ledger.size
    until = sum(ledger.spent.values()) + budget
    left = lambda: until - sum(ledger.spent.values())  # noqa: E731
    round_of = 2 * size + len(STEPS)
    while left() > 0:
        certified = np.flatnonzero(ledger.heights > UNCERTIFIED)
        if not certified.size or left() < round_of:
            return draw(ledger, left(), random)
        count = min(CLIMBERS, left() // round_of)
        top = certified[:count] if random.random() < 0.5 else random.choice(certified, count)
        z, best = ledger.z[top], ledger.heights[top]
        while len(z) and left() >= len(z) * round_of:
            sides = z[:, None, None] + reach * np.array([1, -1])[:, None, None] * np.eye(size)
            heights = ledger("ascent", sides.reshape(-1, size)).reshape(len(z), 2, size)
            known = np.all(heights > UNCERTIFIED, 1)  # on both sides
            slopes = np.where(known, heights[:, 0] - heights[:, 1], 0)
            slopes /= np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-300)
            tries = z[:, None] + STEPS[:, None] * slopes[:, None]
            heights = ledger("ascent", tries.reshape(-1, size)).reshape(len(z), -1)
            going = heights.max(1) > best + 0.01
            z, best = tries[np.arange(len(z)), heights.argmax(1)][going], heights.max(1)[going]
    return None


STRATEGIES = {"random": draw, "cma": evolve, "ascent": climb}


def search(kind, variant, evaluations, seed, dtype="float64", strategies=tuple(STRATEGIES)):
    """The row of one kind and variant: what about so many evaluations found, violations in full.

    Needs jax_enable_x64; and the package `cma`, where that is among the strategies.
    """
    random = np.random.default_rng([seed, list(KINDS).index(kind), VARIANTS.index(variant)])
    ledger, total = Ledger(kind, variant, dtype), sum(SHARES[strategy] for strategy in strategies)
    for strategy in strategies:
        STRATEGIES[strategy](ledger, round(evaluations * SHARES[strategy] / total), random)
    return ledger.retried(ledger.row())


QUICK_RUN = {"evaluations": 300, "kinds": ("ridge, 2",), "variants": ("plain",), "strategies": ("random",)}


@benchmark("adversarial", quick=QUICK_RUN, double=True)
def main(
    run, evaluations=40_000, kinds=tuple(KINDS), variants=VARIANTS, strategies=tuple(STRATEGIES), seed=0
):
    """Searches so many evaluations of each kind, over its variants; writes what was found after each."""
    os.environ.setdefault("PJRT_NPROC", "8")  # docs/gotchas.md, 14
    for kind in kinds:
        chosen = [row for row in ROWS[kind] if row[0] in variants]
        for variant, dtype in chosen:
            began, each = time.perf_counter(), -(-evaluations // len(chosen))
            row = search(kind, variant, each, seed, dtype, strategies)
            seconds = round(time.perf_counter() - began, 1)
            run.add(row | {"seconds": seconds}, seed=seed, tolerance=TOLERANCE)
            compiled.cache_clear()
            jax.clear_caches()  # a process may map only so many pieces of compiled code into its memory
