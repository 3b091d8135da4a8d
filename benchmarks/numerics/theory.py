"""The paper's theory on plots: what a meta-gradient is worth and costs, against exact references.

    python -m benchmarks run theory      # benchmarks/results/theory/theory.json and its figures

(a) error against inner steps, on linear regression where the meta-gradient has a closed form: MAML by
    unrolling and truncated unrolling, implicit MAML with several numbers of CG steps, with a Newton step
    more, and the certificate beside the true error                                   (paper, figure 2a)
    and, with logistic regression, error against delta, the distance to the inner solution
(b) memory, as XLA counts it in the compiled step, (c) time against inner steps of Conv4   (figures 2b, 2c)
(d) products to an accuracy against the condition number                                      (Theorem 1)
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import imaml
from benchmarks.harness import benchmark, compiled, exponent, figure, in_turn
from benchmarks.numerics.accuracy import advanced
from imaml.meta.system import Case, outer_loss_of

FEATURES, ROWS, STRENGTH = 20, 30, 0.5
STEPS, COMPILED = (1, 2, 4, 8, 16, 32, 64, 128, 256), (4, 16, 64, 256)
CONDITIONS = (10, 30, 100, 300, 1000, 3000, 10_000)
ACCURACIES = (1e-2, 1e-4, 1e-6)
DELTAS = tuple(float(f"{d:.3g}") for d in np.geomspace(1e-4, 0.3, 8))


def squares(phi, batch):
    """Half the mean squared error of a linear model."""
    return 0.5 * jnp.mean((batch[0] @ phi - batch[1]) ** 2)


def logistic(phi, batch):
    """The logistic loss of a linear model, labels -1 and 1."""
    return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ phi)))


def regression(seed):
    """Returns theta, a support and a query set of linear regression, and 1 / the largest curvature."""
    random = np.random.default_rng(seed)
    scale = np.geomspace(0.3, 3, FEATURES)
    weights, theta = random.normal(size=(2, FEATURES))
    inputs = random.normal(size=(2, ROWS, FEATURES)) * scale
    targets = inputs @ weights + 0.1 * random.normal(size=(2, ROWS))
    batches = [(jnp.asarray(inputs[i]), jnp.asarray(targets[i])) for i in range(2)]
    largest = np.linalg.norm(inputs[0].T @ inputs[0] / ROWS, 2) + STRENGTH
    return jnp.asarray(theta), *batches, float(1 / largest)


def prepared(loss, theta, support, query):
    """Returns the problem, what the library is given, and a function from phi* to the meta-gradient there."""
    problem = imaml.proximal(loss, STRENGTH, convex=True)
    outer = outer_loss_of(lambda phi, theta, batch: loss(phi, batch), theta, query)
    case = Case(problem, theta, support, outer)
    matrix = jax.jacfwd(lambda p: problem.residual(p, theta, support))

    def exact(star):
        system = case.system(star)
        return system.gradient(jnp.linalg.solve(matrix(star), system.right))

    return problem, case, exact


def errors(seed=0):
    """Returns (a): relative errors of the meta-gradient after each of STEPS inner steps, by method."""
    theta, support, query, rate = regression(seed)
    problem, case, exact = prepared(squares, theta, support, query)
    slope = lambda p: problem.residual(p, theta, support)  # noqa: E731
    truth = exact(theta - jnp.linalg.solve(jax.jacfwd(slope)(theta), slope(theta)))
    off = lambda gradient: jnp.linalg.norm(gradient - truth)  # noqa: E731
    found = {}

    def descended(theta, phi, steps):
        step = lambda _, p: p - rate * problem.residual(p, theta, support)  # noqa: E731
        return lax.fori_loop(0, steps, step, phi)

    def unrolled(theta, steps, kept):
        start = None if kept == steps else descended(theta, theta, steps - kept)
        at = lambda t: squares(descended(t, t if start is None else start, kept), query)  # noqa: E731
        return off(jax.grad(at)(theta))

    @jax.jit
    def implied(phi):
        known = {}
        for count in (2, 5, 10):
            rule = imaml.implicit(imaml.CG(steps=count), certify=imaml.Certificate())
            at = rule.at(case, phi, None)
            known[f"iMAML, CG {count}"] = off(at.gradient)
            known[f"its certified bound, CG {count}"] = at.linear.stats.error_bound
        corrected = imaml.implicit(imaml.CG(steps=10), correct=True).at(case, phi, None)
        return known | {"iMAML, CG 10, a Newton step more": off(corrected.gradient)}

    for steps in STEPS:
        values = {"MAML, unrolled": unrolled(theta, steps, steps)}
        for kept in (4, 16):
            values[f"unrolled, last {kept}"] = unrolled(theta, steps, kept) if steps > kept else None
        for name, value in (values | implied(descended(theta, theta, steps))).items():
            relative = None if value is None else float(value / jnp.linalg.norm(truth))
            found.setdefault(name, []).append(relative)
    return found


def corrections(seed=0):
    """Returns (a) again: relative errors against delta, their slopes, and the products with A.

    Of logistic regression, which is no quadratic, at phi* and in a random direction at distance delta, with
    the linear system solved to the end. products: the mean over all deltas, the first solve's included.
    """
    theta, *batches, _ = regression(seed)
    support, query = ((inputs, jnp.sign(targets)) for inputs, targets in batches)
    problem, case, exact = prepared(logistic, theta, support, query)
    star = imaml.Newton(steps=30)(problem, theta, support).value
    truth = exact(star)
    direction = jnp.asarray(np.random.default_rng(seed + 1).normal(size=FEATURES))
    direction = direction / jnp.linalg.norm(direction)
    linear = imaml.CG(tolerance=1e-12)
    rules = {
        "iMAML": imaml.implicit(linear),
        "iMAML, a Newton step more": imaml.implicit(linear, correct=True),
        "iMAML, accuracy 1e-6 asked for": imaml.implicit(linear, accuracy=1e-6),
    }
    found = {"deltas": list(DELTAS), "errors": {}, "products": {}, "slopes": {}}
    for name, rule in rules.items():
        at = jax.jit(lambda phi, rule=rule: rule.at(case, phi, None))
        ends = [at(star + delta * direction) for delta in DELTAS]
        off = [float(jnp.linalg.norm(end.gradient - truth) / jnp.linalg.norm(truth)) for end in ends]
        found["errors"][name] = off
        found["products"][name] = float(np.mean([end.linear.stats.steps for end in ends]))
        clear = [pair for pair in zip(DELTAS, off, strict=True) if pair[1] > 1e-11]  # above rounding
        found["slopes"][name] = exponent(*zip(*clear, strict=True))
    return found


def products(condition, accuracy, seed=0, size=200):
    """Returns (d): gradients and Hessian-vector products until the meta-gradient is right to `accuracy`.

    On a quadratic with eigenvalues spread geometrically from 1 (the strength) to `condition`: inner steps
    until the meta-gradient with an exact linear solve there is right to half of it, and steps of conjugate
    gradients until that at the exact solution is.
    """
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    matrix = jnp.asarray((basis * np.geomspace(1, condition, size)) @ basis.T)
    right, query, start = (jnp.asarray(v) for v in random.normal(size=(3, size)))
    star, inverse = jnp.linalg.solve(matrix, right), jnp.linalg.inv(matrix)
    truth = inverse @ (star - query)  # of the query loss 1/2 |phi - query|^2
    wrong = lambda g: jnp.linalg.norm(g - truth) / jnp.linalg.norm(truth) > accuracy / 2  # noqa: E731

    def inner(momentum):
        def advance(state):
            phi, before, steps = state
            ahead = phi + momentum * (phi - before)
            return ahead - (matrix @ ahead - right) / condition, phi, steps + 1

        return int(lax.while_loop(lambda s: wrong(inverse @ (s[0] - query)), advance, (start, start, 0))[2])

    def linear():
        b = star - query
        advance = lambda s: (advanced(matrix.__matmul__, s[0]), s[1] + 1)  # noqa: E731
        return int(lax.while_loop(lambda s: wrong(s[0][0]), advance, ((jnp.zeros_like(b), b, b), 0))[1])

    momentum, solved = (condition**0.5 - 1) / (condition**0.5 + 1), linear()
    return {"Nesterov + CG": inner(momentum) + solved, "gradient descent + CG": inner(0.0) + solved}


def compiled_costs(ways=20, shots=5):
    """Returns (b), (c): temporary bytes of Conv4's compiled step, and seconds, the median of three."""
    domain = imaml.characters(ways=ways, shots=shots, queries=5)
    task = jax.tree.map(lambda leaf: leaf[None], domain.sample(jax.random.key(0), "train"))
    theta = domain.init(jax.random.key(1))
    found = {"temporary_bytes": {}, "seconds": {}}
    for count in COMPILED:
        inner = imaml.GradientDescent(0.1, steps=count)
        given = {"inner": inner, "linear": imaml.CG(steps=5)}
        methods = {
            "iMAML": imaml.IMAML(domain.problem(0.5), domain.query_loss, **given),
            "MAML, unrolled": imaml.MAML(domain.problem(None), domain.query_loss, inner=inner),
        }
        for name, method in methods.items():
            call, size = compiled(lambda theta, tasks, method=method: method(theta, tasks)[0], theta, task)
            found["temporary_bytes"].setdefault(name, []).append(size)
            found["seconds"].setdefault(name, []).append(1e-3 * statistics.median(in_turn({"": call}, 3)[""]))
    return found


COLOURS = {"MAML, unrolled": "C1", "unrolled, last 16": "goldenrod", "unrolled, last 4": "tan"}
COLOURS |= {"iMAML, CG 2": "deepskyblue", "iMAML, CG 5": "C0", "iMAML, CG 10": "navy"}
COLOURS |= {"iMAML, CG 10, a Newton step more": "C2"}


def lines_of(found, wrong):
    """Yields each figure: its name and panels, each of lines (x, y, style, colour, label) and two labels."""
    error, x = "relative error of the meta-gradient", found["inner_steps"]
    lines = []
    for name, colour in COLOURS.items():
        lines.append((x, wrong[name], "--" if "nrolled" in name else "-", colour, name))
        if f"its certified bound{name[5:]}" in wrong:
            bound = f"its certified bound{name[5:]}"
            lines.append((x, wrong[bound], ":", colour, bound))
    yield "errors", [(lines, "inner steps", error)]
    more = found["correction"]
    label = lambda name: f"{name}: slope {more['slopes'][name]:.2f}, {more['products'][name]:.0f} products"  # noqa: E731
    lines = [(more["deltas"], row, "-", None, label(name)) for name, row in more["errors"].items()]
    yield "correction", [(lines, "delta, distance to the inner solution", error)]
    counted, lines = found["products"], []
    for name, rows in counted["counts"].items():
        for style, (accuracy, counts) in zip(("-", "--", ":"), rows.items(), strict=True):
            label = f"{name}, to {float(accuracy):.0e}: exponent {counted['exponents'][name][accuracy]:.2f}"
            colour = "C0" if name.startswith("Nesterov") else "C1"
            lines.append((counted["conditions"], counts, style, colour, label))
    yield "products", [(lines, "condition number", "gradients and Hessian-vector products")]
    panels = []
    units = {"temporary_bytes": ("temporary memory [MiB]", 2**20), "seconds": ("seconds", 1)}
    for kind, (label, unit) in units.items():
        rows = found.get(kind, {}).items()
        lines = [(COMPILED, np.asarray(row) / unit, "-", None, name) for name, row in rows]
        panels += [(lines, "inner steps", label)] if lines else []
    if panels:
        yield "costs", panels


def draw(found, wrong, folder):
    """Draws the figures."""
    for name, panels in lines_of(found, wrong):
        size, file = (7 if name == "errors" else 9, 4), folder / f"theory-{name}.svg"
        with figure(file, 1, len(panels), figsize=size) as (_, shown):
            for panel, (lines, x_label, y_label) in zip(shown[0], panels, strict=True):
                for x, y, style, colour, label in lines:
                    y = [np.nan if v is None else v for v in y]
                    marker = None if style == ":" and name == "errors" else "."
                    panel.loglog(x, y, style, color=colour, marker=marker, label=label)
                panel.set(xlabel=x_label, ylabel=y_label)
                panel.grid(alpha=0.3)
                panel.legend(frameon=False, fontsize=8)


@benchmark("theory", result="theory/theory.json", double=True)
def main(run):
    """Measures, prints exponents and slopes, draws and writes; `--quick` skips what takes long."""
    conditions = CONDITIONS[:4] if run.quick else CONDITIONS
    counted = {a: [products(c, a) for c in conditions] for a in ACCURACIES}
    wrong, corrected, counts, exponents = errors(), corrections(), {}, {}
    for name in ("Nesterov + CG", "gradient descent + CG"):
        counts[name] = {str(a): [c[name] for c in row] for a, row in counted.items()}
        exponents[name] = {a: exponent(conditions, row) for a, row in counts[name].items()}
        facts = ", ".join(f"{slope:.2f} to {float(a):.0e}" for a, slope in exponents[name].items())
        print(f"products grow with the condition number to the power of: {name}: {facts}")
    for name, slope in corrected["slopes"].items():
        print(f"error against delta: {name}: slope {slope:.2f}, {corrected['products'][name]:.0f} products")
    found = {"inner_steps": list(STEPS), "correction": corrected}
    found["products"] = {"conditions": list(conditions), "counts": counts, "exponents": exponents}
    if not run.quick:
        jax.config.update("jax_enable_x64", False)
        found |= {"compiled_steps": list(COMPILED), **compiled_costs()}
    run.write([{"method": name, "errors": row} for name, row in wrong.items()], **found)
    draw(found, wrong, run.out.parent)
    print(run.out)
