"""Bounds and estimates of meta-gradients' errors beside the true errors, over random problems.

    python -m benchmarks run certificates

Of each kind (ridge and logistic regression, declared convex; small networks, of which nothing is declared,
and the same with Gauss-Newton curvature; smooth, as a ReLU network's solution mostly lies on a kink, where F
jumps and is not zero) problems are drawn with strengths from 0.1 to 10, 1 to 1,000 inner
steps and 1 to a full number of steps of conjugate gradients, all log-uniform. The reference is dense, in
float64: the inner solve goes on to |F| < 1e-12, and the system there is solved by LU. A problem whose
reference is not reached (for which "the solution near phi" does not exist) is drawn anew and counted.

Then 2,000 new problems, a quarter of each kind, are looked through for errors that are not reported: off by
more than 10 %, with no bound, an estimate below 10 %, and a status that does not call it unreliable.
"""

import functools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

import imaml
from benchmarks.harness import benchmark, mapped, say
from imaml.core.solution import bounded
from imaml.meta.system import Case, outer_loss_of

LINEAR = (1, 2, 3, 5, 10, 20, 1000)
INNER = (1, 1000)
FEATURES, ROWS, WAYS = 16, 10, 5


def ridge():
    """Linear regression with badly scaled inputs: (loss, a draw of one task and theta, options)."""

    def draw(key):
        keys = jax.random.split(key, 5)
        scale = jnp.exp(jax.random.uniform(keys[3], (FEATURES,), minval=-2.0, maxval=1.0))
        inputs = scale * jax.random.normal(keys[0], (2, ROWS, FEATURES))
        weights, noise = jax.random.normal(keys[1], (FEATURES,)), jax.random.normal(keys[2], (2, ROWS))
        targets = inputs @ weights + 0.1 * noise
        return jax.random.normal(keys[4], (FEATURES,)), (inputs[0], targets[0]), (inputs[1], targets[1])

    return lambda phi, batch: 0.5 * jnp.mean((batch[0] @ phi - batch[1]) ** 2), draw, {"convex": True}


def logistic():
    """Logistic regression."""

    def loss(phi, batch):
        scores = batch[0] @ phi["weight"] + phi["bias"]
        return jnp.mean(jnp.logaddexp(0, scores) - batch[1] * scores)

    def draw(key):
        keys = jax.random.split(key, 4)
        inputs = 2 * jax.random.normal(keys[0], (2, ROWS, FEATURES))
        labels = (inputs @ jax.random.normal(keys[1], (FEATURES,)) > 0).astype(inputs.dtype)
        theta = {"weight": jax.random.normal(keys[2], (FEATURES,)), "bias": jax.random.normal(keys[3])}
        return theta, (inputs[0], labels[0]), (inputs[1], labels[1])

    return loss, draw, {"convex": True}


def network(activation, curvature="hessian"):
    """A network 16-24-5 (533 parameters) and five clusters of two points each, as classes."""
    model = imaml.MLP((FEATURES, 24, WAYS), activation)
    outputs = lambda phi, batch: model.forward(phi, batch[0])[0]  # noqa: E731
    cost = lambda z, batch: -jnp.mean(jnp.sum(batch[1] * jax.nn.log_softmax(z), -1))  # noqa: E731

    def draw(key):
        keys = jax.random.split(key, 3)
        centres = jax.random.normal(keys[0], (WAYS, FEATURES))
        labels = jnp.tile(jnp.eye(WAYS), (2, ROWS // WAYS, 1))
        inputs = jnp.tile(centres, (2, ROWS // WAYS, 1))
        inputs = inputs + 0.5 * jax.random.normal(keys[1], inputs.shape)
        theta = jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), model.init(keys[2]))
        return theta, (inputs[0], labels[0]), (inputs[1], labels[1])

    return imaml.composed(outputs, cost), draw, {"curvature": curvature}


KINDS = {
    "ridge": ridge(),
    "logistic": logistic(),
    "network, tanh": network("tanh"),
    "network, tanh, Gauss-Newton": network("tanh", "gauss-newton"),
}


class Setting(namedtuple("Setting", "case flat unravel slope matrix curved rate")):
    """One task's problem over flat vectors: F, its matrix, and what the reference is made of.

    matrix: of the system, Gauss-Newton's where the problem has that. curved: of F itself.
    """

    def descended(self, phi, steps):
        """After so many steps of gradient descent."""
        return lax.fori_loop(0, steps, lambda _, p: p - self.rate * self.slope(p), phi)

    def implied(self, rule, phi, key):
        """What a rule makes of a phi, its gradient as a flat vector."""
        found = rule.at(self.case, self.unravel(phi), key)
        return found._replace(gradient=ravel_pytree(found.gradient)[0])

    def reference(self, phi):
        """The solution near phi, the exact meta-gradient there, and whether it was reached."""
        far = lax.while_loop(
            lambda s: (s[1] < 20_000) & (jnp.linalg.norm(self.slope(s[0])) > 1e-4),
            lambda s: (s[0] - self.rate * self.slope(s[0]), s[1] + 1),
            (phi, 0),
        )[0]
        newton = lambda _, p: p - jnp.linalg.solve(self.curved(p), self.slope(p))  # noqa: E731
        star = lax.fori_loop(0, 8, newton, far)
        exact = self.case.system(self.unravel(star))
        right = ravel_pytree(exact.right)[0]
        u = self.unravel(jnp.linalg.solve(self.matrix(star), right))
        reached = jnp.linalg.norm(self.slope(star)) < 1e-12 * (1 + jnp.linalg.norm(star))
        reached &= jnp.linalg.norm(star - far) < 0.1
        reached &= jnp.linalg.eigvalsh(self.curved(star))[0] > 0
        return star, ravel_pytree(exact.gradient(u))[0], reached


def setting(kind, key, strength):
    """One task drawn, of a kind."""
    loss, draw, options = KINDS[kind]
    theta, support, query = draw(key)
    problem = imaml.proximal(loss, strength, **options)
    judge = outer_loss_of(lambda phi, theta, batch: loss(phi, batch), theta, query)
    flat, unravel = ravel_pytree(theta)
    slope = lambda p: ravel_pytree(problem.residual(unravel(p), theta, support))[0]  # noqa: E731
    hessian = jax.jacfwd(jax.grad(lambda p: loss(unravel(p), support)))
    matrix, one = jax.jacfwd(slope), strength * jnp.eye(flat.size)
    # A step that is stable at theta, and at 0, where a logistic loss is steepest.
    steepest = lambda p: jnp.max(jnp.abs(jnp.linalg.eigvalsh(matrix(p) - one)))  # noqa: E731
    rate = 1 / (strength + jnp.maximum(steepest(flat), steepest(0 * flat)))
    case = Case(problem, theta, support, judge)
    return Setting(case, flat, unravel, slope, matrix, lambda p: hessian(p) + one, rate)


def measure(kind, steps, key, strength, inner_steps, recipe=imaml.Certificate()):
    """One problem: the true error of `steps` of CG at the phi of `inner_steps`, with what is said of it."""
    here = setting(kind, key, strength)
    phi = here.descended(here.flat, inner_steps)
    rule = imaml.implicit(imaml.CG(steps=min(steps, here.flat.size)), certify=recipe)
    implied = here.implied(rule, phi, jax.random.fold_in(key, 1))
    plain = here.implied(imaml.implicit(rule.linear), phi, key).linear.status
    _, truth, reached = here.reference(phi)
    size, stats, status = jnp.linalg.norm(truth), implied.linear.stats, implied.linear.status
    return {
        "true": jnp.linalg.norm(implied.gradient - truth) / size,
        "estimate": stats.error_estimate / size,
        "bound": stats.error_bound / size,
        "code": status.certificate,
        "plain_code": plain.certificate,
        "products": stats.steps,
        "ending": status.code,
        "negative_curvature": stats.negative_curvature,
        "smallest": jnp.linalg.eigvalsh(here.matrix(phi))[0],
        "reached": reached,
    }


def problems(kind, count, seed=0, linear=LINEAR):
    """What is known of `count` problems of one kind, as arrays; and how many had no reference."""
    random = np.random.default_rng([seed, list(KINDS).index(kind)])
    found, lost = [], 0
    for part, steps in enumerate(linear):
        want = (count * (part + 1)) // len(linear) - (count * part) // len(linear)
        run = mapped(functools.partial(measure, kind, steps))
        have = 0
        while have < want:
            strengths = np.exp(random.uniform(np.log(0.1), np.log(10), want))
            inner = np.rint(np.exp(random.uniform(np.log(INNER[0]), np.log(INNER[1]), want))).astype(int)
            keys = jax.random.split(jax.random.key(random.integers(2**31)), want)
            batch = run(keys, strengths, inner)
            batch |= {"strength": strengths, "inner_steps": inner, "linear_steps": np.full(want, steps)}
            good = np.flatnonzero(batch["reached"])[: want - have]
            lost += int((~batch["reached"]).sum())
            found.append({k: v[good] for k, v in batch.items()})
            have += good.size
    return joined(found), lost


def joined(found):
    """Returns problems in several parts as one."""
    return {k: np.concatenate([part[k] for part in found]) for k in found[0]}


def summary(found):
    """The figures of a set of problems."""
    certified = bounded(found["code"])
    small = found["true"] < 0.01
    ratio = (found["bound"] / found["true"])[certified]
    wrong = found["true"] > 0.1
    trusted = found["plain_code"] == int(imaml.Certification.ESTIMATED)
    silent = wrong & (found["estimate"] < 0.1) & trusted
    said_small = (found["estimate"] < 0.1 * found["true"]) & trusted
    decades = np.abs(np.log10(np.maximum(found["estimate"], 1e-300) / found["true"]))
    return {
        "problems": certified.size,
        "certified": certified.mean(),
        "bound_holds": (ratio >= 1).mean() if ratio.size else None,
        "median_bound_over_true": np.median(ratio) if ratio.size else None,
        "true_below_1_percent": small.sum(),
        "of_them_certified": certified[small].mean() if small.any() else None,
        "products_median": np.median(found["products"]),
        "off_by_10_percent": wrong.sum(),
        "of_them_estimated_below_10_percent_and_not_flagged": silent.sum(),
        "of_them_neither_certified_nor_flagged": (silent & ~certified).sum(),
        "of_them_the_bound_too_small": (wrong & certified & (found["bound"] < found["true"])).sum(),
        "estimate_flagged": (~trusted).mean(),
        "estimate_below_a_tenth_of_true_and_not_flagged": said_small.sum(),
        "estimate_at_least_true": (found["estimate"] >= found["true"]).mean(),
        "median_estimate_over_true": np.median(found["estimate"] / found["true"]),
        "estimate_within_10_times": (decades < 1).mean(),
        "indefinite": (found["smallest"] <= 0).sum(),
        "negative_curvature_seen": found["negative_curvature"].sum(),
        "codes": {code.name: (found["code"] == int(code)).sum() for code in imaml.Certification},
    }


@benchmark("certificates", quick={"each": 7, "new": 7}, double=True)
def main(run, each=126, new=500):
    """Measures `each` problems of each kind, and looks through `new` more."""
    parts = {"rows": [], "new": []}
    for name, count, seed in (("rows", each, 0), ("new", new, 1)):
        known = {kind: problems(kind, count, seed) for kind in KINDS}
        for kind, (found, lost) in known.items():
            parts[name].append({"kind": kind, "without_reference": lost, **summary(found)})
        parts[name].append({"kind": "all", **summary(joined([found for found, _ in known.values()]))})
        for row in parts[name]:
            say(row)
        if name == "rows":
            rounded = lambda column: [float(f"{x:.4g}") if np.isfinite(x) else None for x in column]  # noqa: E731
            every = {kind: {k: rounded(v) for k, v in found.items()} for kind, (found, _) in known.items()}
    run.write(problems=every, **parts)
