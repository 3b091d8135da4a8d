"""The paper's theory on plots: what a meta-gradient is worth and costs, against exact references.

(a) error against inner steps, on linear regression where the meta-gradient has a closed form: MAML by
    unrolling and truncated unrolling, implicit MAML with several numbers of CG steps, with a Newton step
    more, and the certificate beside the true error                                   (paper, figure 2a)
    and, with logistic regression, error against delta, how far the inner solution is off
(b) memory, as XLA counts it in the compiled step, (c) time against inner steps of Conv4   (figures 2b, 2c)
(d) products to an accuracy against the condition number                                      (Theorem 1)
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.version import __version__
from ..domains.fewshot.domain import characters
from ..inner.gradient import GradientDescent
from ..inner.newton import Newton
from ..linear.cg import CG
from ..meta.certificate import Certificate
from ..meta.implicit import implicit
from ..meta.methods import IMAML, MAML
from ..meta.system import Case, outer_loss_of
from ..problems.base import Task
from ..problems.proximal import proximal

FEATURES, ROWS, STRENGTH = 20, 30, 0.5
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONDITIONS = (10, 30, 100, 300, 1000, 3000, 10_000)
ACCURACIES = (1e-2, 1e-4, 1e-6)
DELTAS = tuple(float(f"{d:.3g}") for d in np.geomspace(1e-4, 0.3, 8))


def regression(seed: int) -> tuple[Any, Array, Task, float]:
    """A ridge problem, theta, a task, and 1 / the largest curvature."""
    random = np.random.default_rng(seed)
    scale = np.geomspace(0.3, 3, FEATURES)
    weights, theta = random.normal(size=(2, FEATURES))
    inputs = random.normal(size=(2, ROWS, FEATURES)) * scale
    targets = inputs @ weights + 0.1 * random.normal(size=(2, ROWS))
    task = Task(*((jnp.asarray(inputs[i]), jnp.asarray(targets[i])) for i in range(2)))
    problem = proximal(_squares, STRENGTH, convex=True)
    largest = np.linalg.norm(inputs[0].T @ inputs[0] / ROWS, 2) + STRENGTH
    return problem, jnp.asarray(theta), task, float(1 / largest)


def _squares(phi: Any, batch: Any) -> Array:
    return 0.5 * jnp.mean((batch[0] @ phi - batch[1]) ** 2)


def errors(seed: int = 0) -> dict[str, list[float | None]]:
    """(a): relative errors of the meta-gradient after each of STEPS inner steps, by method."""
    problem, theta, task, rate = regression(seed)
    slope = lambda p: problem.residual(p, theta, task.support)  # noqa: E731
    matrix = jax.jacfwd(slope)(theta)
    star = theta - jnp.linalg.solve(matrix, slope(theta))
    judge = outer_loss_of(lambda phi, theta, batch: _squares(phi, batch), theta, task.query)
    case = Case(problem, theta, task.support, judge)
    system = case.system(star)
    truth = system.gradient(jnp.linalg.solve(matrix, system.right))
    size = jnp.linalg.norm(truth)
    found: dict[str, list[float | None]] = {}

    def add(name: str, value: Any) -> None:
        found.setdefault(name, []).append(None if value is None else float(value / size))

    def descended(theta: Array, phi: Array, steps: int) -> Array:
        step = lambda _, p: p - rate * problem.residual(p, theta, task.support)  # noqa: E731
        return lax.fori_loop(0, steps, step, phi)

    def unrolled(theta: Array, steps: int, kept: int) -> Array:
        start = None if kept == steps else descended(theta, theta, steps - kept)
        return jax.grad(lambda t: _squares(descended(t, t if start is None else start, kept), task.query))(
            theta
        )

    off = lambda gradient: jnp.linalg.norm(gradient - truth)  # noqa: E731

    @jax.jit
    def implied(phi: Array) -> dict[str, Array]:
        at = lambda rule: rule.at(case, phi, None)  # noqa: E731
        known: dict[str, Array] = {}
        for count in (2, 5, 10):
            found = at(implicit(CG(steps=count), certify=Certificate()))
            known[f"iMAML, CG {count}"] = off(found.gradient)
            known[f"its certified bound, CG {count}"] = found.linear.stats.error_bound
        corrected = at(implicit(CG(steps=10), correct=True))
        return known | {"iMAML, CG 10, a Newton step more": off(corrected.gradient)}

    for steps in STEPS:
        phi = descended(theta, theta, steps)
        add("MAML, unrolled", off(unrolled(theta, steps, steps)))
        for kept in (4, 16):
            add(f"unrolled, last {kept}", off(unrolled(theta, steps, kept)) if steps > kept else None)
        for name, value in implied(phi).items():
            add(name, value)
    return found


def corrections(seed: int = 0) -> dict[str, Any]:
    """(a) again: relative errors of the meta-gradient against delta, the slopes, and the products with A.

    Of logistic regression, which is no quadratic, at phi* and a random way of length delta from it, with the
    linear system solved to the end. products: the mean over all deltas, the first solve's among them.
    """
    _, theta, task, _ = regression(seed)
    support, query = (
        (inputs, jnp.sign(targets), jnp.ones(())) for inputs, targets in (task.support, task.query)
    )
    problem = proximal(_logistic, STRENGTH, convex=True)
    slope = lambda p: problem.residual(p, theta, support)  # noqa: E731
    star = Newton(steps=30)(problem, theta, support).value
    matrix = jax.jacfwd(slope)(star)
    judge = outer_loss_of(lambda phi, theta, batch: _logistic(phi, batch), theta, query)
    case = Case(problem, theta, support, judge)
    system = case.system(star)
    truth = system.gradient(jnp.linalg.solve(matrix, system.right))
    way = jnp.asarray(np.random.default_rng(seed + 1).normal(size=FEATURES))
    way = way / jnp.linalg.norm(way)
    linear = CG(tolerance=1e-12)
    rules = {
        "iMAML": implicit(linear),
        "iMAML, a Newton step more": implicit(linear, correct=True),
        "iMAML, accuracy 1e-6 asked for": implicit(linear, accuracy=1e-6),
    }
    found: dict[str, Any] = {"deltas": list(DELTAS), "errors": {}, "products": {}, "slopes": {}}
    for name, rule in rules.items():
        at = jax.jit(lambda phi, rule=rule: rule.at(case, phi, None)[1::3])
        ends = [at(star + delta * way) for delta in DELTAS]
        off = [float(jnp.linalg.norm(g - truth) / jnp.linalg.norm(truth)) for g, _ in ends]
        found["errors"][name] = off
        found["products"][name] = float(np.mean([solution.stats.steps for _, solution in ends]))
        clear = [i for i, error in enumerate(off) if error > 1e-11]  # above rounding
        found["slopes"][name] = exponent([DELTAS[i] for i in clear], [off[i] for i in clear])
    return found


def _logistic(phi: Any, batch: Any) -> Array:
    return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ phi)))


def products(condition: float, accuracy: float, seed: int = 0, size: int = 200) -> dict[str, int]:
    """(d): gradients and Hessian-vector products until the meta-gradient is right to `accuracy`.

    On a quadratic with eigenvalues spread geometrically from 1 (the strength) to `condition`: inner steps
    until the meta-gradient with an exact linear solve there is right to half of it, and steps of conjugate
    gradients until that at the exact solution is.
    """
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(size, size)))[0]
    matrix = jnp.asarray((turn * np.geomspace(1, condition, size)) @ turn.T)
    right, query, start = (jnp.asarray(v) for v in random.normal(size=(3, size)))
    star, inverse = jnp.linalg.solve(matrix, right), jnp.linalg.inv(matrix)
    truth = inverse @ (star - query)  # of the query loss 1/2 |phi - query|^2
    off = lambda gradient: jnp.linalg.norm(gradient - truth) / jnp.linalg.norm(truth)  # noqa: E731
    wanting = lambda phi: off(inverse @ (phi - query)) > accuracy / 2  # noqa: E731
    momentum = (condition**0.5 - 1) / (condition**0.5 + 1)

    def count(momentum: float) -> int:
        def advance(state: tuple) -> tuple:
            phi, before, steps = state
            ahead = phi + momentum * (phi - before)
            return ahead - (matrix @ ahead - right) / condition, phi, steps + 1

        return int(lax.while_loop(lambda s: wanting(s[0]), advance, (start, start, 0))[2])

    def linear() -> int:
        def advance(state: tuple) -> tuple:
            x, r, p, steps = state
            image = matrix @ p
            length = (r @ r) / (p @ image)
            following = r - length * image
            return x + length * p, following, following + (following @ following) / (r @ r) * p, steps + 1

        b = star - query
        begin = (jnp.zeros_like(b), b, b, 0)
        return int(lax.while_loop(lambda s: off(s[0]) > accuracy / 2, advance, begin)[3])

    solved = linear()
    return {"Nesterov + CG": count(momentum) + solved, "gradient descent + CG": count(0.0) + solved}


def exponent(conditions: Sequence[float], counts: Sequence[float]) -> float:
    """The slope of log counts against log conditions, by least squares."""
    return float(np.polyfit(np.log(conditions), np.log(counts), 1)[0])


def compiled_costs(
    steps: Sequence[int] = (4, 16, 64, 256), ways: int = 20, shots: int = 5
) -> dict[str, dict[str, list[float]]]:
    """(b), (c): temporary bytes of the compiled Conv4 step of one task, and seconds, the median of three."""
    domain = characters(ways=ways, shots=shots, queries=5)
    task = jax.tree.map(lambda leaf: leaf[None], domain.sample(jax.random.key(0), "train"))
    theta = domain.init(jax.random.key(1))

    def unrolled_loop(count: int) -> Any:
        return MAML(domain.problem(None), domain.query_loss, inner=GradientDescent(0.1, steps=count))

    def implicit_loop(count: int) -> Any:
        inner = GradientDescent(0.1, steps=count)
        return IMAML(domain.problem(0.5), domain.query_loss, inner=inner, linear=CG(steps=5))

    makers: dict[str, Callable[[int], Any]] = {"iMAML": implicit_loop, "MAML, unrolled": unrolled_loop}
    memory: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for name, make in makers.items():
        for count in steps:
            compiled = jax.jit(lambda t, b, m=make(count): m(t, b)[0]).lower(theta, task).compile()
            analysis = compiled.memory_analysis()
            memory.setdefault(name, []).append(getattr(analysis, "temp_size_in_bytes", np.nan))
            times = []
            for _ in range(4):
                began = time.perf_counter()
                jax.block_until_ready(compiled(theta, task))
                times.append(time.perf_counter() - began)
            seconds.setdefault(name, []).append(statistics.median(times[1:]))
    return {"temporary_bytes": memory, "seconds": seconds}


def measure(quick: bool = False) -> dict[str, Any]:
    """Everything that the plots show, in float64."""
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)
    try:
        conditions = CONDITIONS[:4] if quick else CONDITIONS
        counted = {a: [products(c, a) for c in conditions] for a in ACCURACIES}
        found = {"inner_steps": list(STEPS), "errors": errors(), "correction": corrections()}
    finally:
        jax.config.update("jax_enable_x64", before)
    names = list(next(iter(counted.values()))[0])
    found["products"] = {
        "conditions": list(conditions),
        "counts": {name: {str(a): [c[name] for c in row] for a, row in counted.items()} for name in names},
        "exponents": {
            name: {str(a): exponent(conditions, [c[name] for c in row]) for a, row in counted.items()}
            for name in names
        },
    }
    if not quick:
        found |= {"compiled_steps": [4, 16, 64, 256], **compiled_costs()}
    return found


ERRORS = {  # the lines of the first figure in their order; a bound has the colour of what it bounds
    "MAML, unrolled": "C1",
    "unrolled, last 16": "goldenrod",
    "unrolled, last 4": "tan",
    "iMAML, CG 2": "deepskyblue",
    "its certified bound, CG 2": "deepskyblue",
    "iMAML, CG 5": "C0",
    "its certified bound, CG 5": "C0",
    "iMAML, CG 10": "navy",
    "its certified bound, CG 10": "navy",
    "iMAML, CG 10, a Newton step more": "C2",
}


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """The plots as SVG files, and theory.json beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "imaml", "font.size": 10})
    folder.mkdir(parents=True, exist_ok=True)
    figure, panel = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for name, colour in ERRORS.items():
        bound, values = name.startswith("its"), found["errors"][name]
        style = ":" if bound else "--" if "nrolled" in name else "-"
        y = [np.nan if v is None else v for v in values]
        panel.loglog(found["inner_steps"], y, style, color=colour, marker=None if bound else ".", label=name)
    panel.set(xlabel="inner steps", ylabel="relative error of the meta-gradient")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8, ncols=2)
    files = [folder / "theory-errors.svg"]
    figure.savefig(files[-1], metadata={"Date": None})
    figure, panel = plt.subplots(figsize=(6, 4), layout="constrained")
    more = found["correction"]
    for name, values in more["errors"].items():
        label = f"{name}: slope {more['slopes'][name]:.2f}, {more['products'][name]:.0f} products"
        panel.loglog(more["deltas"], values, marker=".", label=label)
    panel.set(xlabel="delta, distance to the inner solution", ylabel="relative error of the meta-gradient")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8)
    files.append(folder / "theory-correction.svg")
    figure.savefig(files[-1], metadata={"Date": None})
    figure, panel = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, rows in found["products"]["counts"].items():
        for style, (accuracy, counts) in zip(("-", "--", ":"), rows.items(), strict=True):
            slope = found["products"]["exponents"][name][accuracy]
            colour = "C0" if name.startswith("Nesterov") else "C1"
            label = f"{name}, to {float(accuracy):.0e}: exponent {slope:.2f}"
            panel.loglog(
                found["products"]["conditions"], counts, style, color=colour, marker=".", label=label
            )
    panel.set(xlabel="condition number", ylabel="gradients and Hessian-vector products")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8)
    files.append(folder / "theory-products.svg")
    figure.savefig(files[-1], metadata={"Date": None})
    if "temporary_bytes" in found:
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        kinds = (("temporary_bytes", "temporary memory [MiB]", 2**20), ("seconds", "seconds", 1))
        for panel, (kind, label, unit) in zip(panels, kinds, strict=True):
            for name, values in found[kind].items():
                panel.loglog(found["compiled_steps"], np.asarray(values) / unit, marker="o", label=name)
            panel.set(xlabel="inner steps", ylabel=label)
            panel.grid(alpha=0.3)
        panels[0].legend(frameon=False)
        files.append(folder / "theory-costs.svg")
        figure.savefig(files[-1], metadata={"Date": None})
    file = folder / "theory.json"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"platform": platform.platform(terse=True), "cores": cores, "python": platform.python_version()}
    machine |= {"imaml": __version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    file.write_text(
        json.dumps({"command": "imaml bench theory", "machine": machine, **found}, indent=1) + "\n"
    )
    return [*files, file]
