"""The training step, and the state that it starts from."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped

from ..config.optimiser import Outer
from ..core import tree
from ..core.compile import whole_program
from ..core.errors import ConfigError
from ..core.tree import Tree
from ..domains.base import Domain, sample_many
from ..meta.arguments import require_parameters
from ..meta.gradient import AXIS, MetaGradient, unsolved
from ..meta.marginal import doubled, newton, roots, unrooted
from ..problems.precision import Theta

State: TypeAlias = dict[str, Tree]  # "theta", "optimiser", "average" and "step"
Report: TypeAlias = dict[str, Tree]  # "gradient_norm" and "metrics"


def devices_mesh(tasks: int) -> Mesh | None:
    """Make a mesh over as many devices as can share the tasks evenly.

    Args:
        tasks: Tasks in each step.

    Returns:
        The mesh, or None for a single device.
    """
    found = jax.devices()
    while len(found) > 1 and tasks % len(found):
        found = found[:-1]
    return Mesh(np.array(found), (AXIS,)) if len(found) > 1 else None


def mesh_size(mesh: Mesh | None) -> int:
    """Return how many devices share the tasks.

    Args:
        mesh: The mesh; None for one device.

    Returns:
        The number of devices.
    """
    return 1 if mesh is None else mesh.size


@functools.lru_cache(maxsize=8)
def make_step(method: MetaGradient, outer: Outer, tasks: int, every: int = 1, last: int = 0) -> Wrapped:
    """Make the training step: samples tasks, computes the meta-gradient, updates the meta-parameters.

    Tasks come from ``fold_in(key, step)``, so a step draws the same tasks whatever came before. If no task is
    usable or the meta-gradient is not finite, the state stays as it was; the caller then raises.

    Args:
        method: Gives the meta-gradient.
        outer: The outer optimiser.
        tasks: Tasks in each step.
        every: Errors are estimated in every so many steps, 0 for none. In the others they are NaN, and cost
            nothing.
        last: A step in which they are estimated, too.

    Returns:
        The jitted function (domain, state, key) -> (state, report). The report has the norm of the
        meta-gradient, "gradient_norm", and the method's "metrics".
    """

    def spread(drawn: Tree) -> Tree:
        if method.mesh is None:
            return drawn
        return jax.lax.with_sharding_constraint(drawn, NamedSharding(method.mesh, PartitionSpec(AXIS)))

    def step(domain: Domain, state: State, key: Array) -> tuple[State, Report]:
        # The keys depend on the step alone.
        sample_key, method_key = jax.random.split(jax.random.fold_in(key, state["step"]))
        batch = sample_many(domain, sample_key, "train", tasks, spread)
        number = state["step"] + 1
        due = every == 1 if every < 2 else (number % every == 0) | (number == last)
        gradient, metrics = method(state["theta"], batch, method_key, state["step"], due)
        size = tree.norm(gradient)
        good = jnp.isfinite(size) & jnp.any(metrics.used)
        updates, memory = outer.transform.update(gradient, state["optimiser"], state["theta"])
        theta = optax.apply_updates(state["theta"], updates)
        new = {"theta": theta, "optimiser": memory, "average": {}}
        if outer.average:
            decayed = lambda a, t: outer.average * a + (1 - outer.average) * t  # noqa: E731
            new["average"] = jax.tree.map(decayed, state["average"], theta)
        # A step without a usable task leaves the state as it was.
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, {k: state[k] for k in new})
        kept["step"] = state["step"] + good.astype(jnp.int32)
        return kept, {"gradient_norm": size, "metrics": metrics}

    return whole_program(step)


class NewtonStep:
    """The training step of Newton's method on the likelihood of all training tasks, in float64.

    It is called as what `make_step` returns, with the same report: "gradient_norm" is the distance from the
    maximum, in standard errors. Standard deviations of 0 are kept in the optimiser's memory, as a precision
    cannot hold them.

    Args:
        method: Gives the problem, by the rule `evidence`.
        tasks: How many training tasks there are.

    Raises:
        ConfigError: If the method has another rule, or steps do not have all training tasks.
    """

    def __init__(self, method: MetaGradient, domain: Domain, tasks: int) -> None:
        """Check what can be, and prepare the program."""
        if not getattr(method.rule, "marginal", False):
            raise ConfigError(
                "optimiser: expected the method evidence with name='newton', got one with the rule "
                f"{type(method.rule).__name__}. Hint: --method.name=evidence, or --optimiser.name=adam."
            )
        if tasks != domain.size("train"):
            raise ConfigError(
                "optimiser: expected every training task in each step with name='newton', got "
                f"tasks={tasks} of {domain.size('train')}. Hint: --training.tasks=0."
            )
        self._program = whole_program(functools.partial(self._taken, method, tasks))

    @staticmethod
    def _taken(
        method: MetaGradient, tasks: int, domain: Domain, state: State, key: Array
    ) -> tuple[State, Report]:
        batch = sample_many(domain, key, "train", tasks, lambda drawn: drawn)
        rows = jax.vmap(lambda task: task.whole(method.rule.whole))(batch)  # type: ignore[attr-defined]
        theta, memory, rows = doubled((state["theta"], state["optimiser"], rows))
        fresh = roots(method.problem, theta)
        known = jax.tree.map(lambda old, new: jnp.where(jnp.isnan(old), new, old), Theta.of(memory), fresh)
        move = newton(method.problem, known, rows)
        found = unrooted(method.problem, move.rooted)
        used = jnp.isfinite(move.surprises)
        good = jnp.all(used) & jnp.isfinite(move.distance)
        new = {"theta": found, "optimiser": move.rooted}
        new = {n: part if isinstance(state["theta"], Theta) else part.mean for n, part in new.items()}
        narrow = lambda old, now: jnp.where(good, now.astype(old.dtype), old)  # noqa: E731
        kept: State = {name: jax.tree.map(narrow, state[name], new[name]) for name in new}
        kept |= {"average": state["average"], "step": state["step"] + good.astype(jnp.int32)}
        metrics = unsolved(move.surprises, jnp.broadcast_to(move.distance, used.shape), used)
        return kept, {"gradient_norm": move.distance, "metrics": metrics}

    def __call__(self, domain: Domain, state: State, key: Array) -> tuple[State, Report]:
        """Take a step."""
        with jax.enable_x64(True):
            return self._program(domain, state, key)

    def __getattr__(self, name: str) -> Callable:
        """Return `lower`, `trace` or `eval_shape` of the program, in float64 as well."""
        if name.startswith("_"):
            raise AttributeError(name)

        def within(*arguments: object) -> object:
            with jax.enable_x64(True):
                return getattr(self._program, name)(*arguments)

        return within


def initial_state(
    domain: Domain, method: MetaGradient, outer: Outer, key: Array, start: Tree = None
) -> State:
    """Make the state of step 0.

    Args:
        domain: Gives fresh parameters of its network.
        method: Gives fresh meta-parameters.
        outer: The outer optimiser.
        key: For fresh parameters.
        start: Meta-parameters to start from, or None for fresh ones.

    Returns:
        A tree of arrays: "theta", "optimiser", "average" and "step".

    Raises:
        ConfigError: If the shapes of ``start`` do not fit, or it is not finite.
    """
    theta = method.init(domain, key)
    require_parameters("train", theta)
    if start is not None:
        check_theta(start, theta)
        theta = jax.tree.map(lambda old, new: jnp.asarray(old, new.dtype), start, theta)
    return {
        "theta": theta,
        "optimiser": outer.transform.init(theta),
        "average": jax.tree.map(jnp.copy, theta) if outer.average else {},
        "step": jnp.zeros((), jnp.int32),
    }


def check_theta(start: Tree, fresh: Tree) -> None:
    """Check meta-parameters to start from.

    Args:
        start: The meta-parameters.
        fresh: Fresh ones.

    Raises:
        ConfigError: If the two differ in structure, shapes or dtypes, or ``start`` is not finite.
    """
    if not tree.same(start, fresh):
        raise ConfigError(
            "start: expected meta-parameters of this domain and method, got others: "
            f"{tree.apart(start, fresh)}. Hint: ways, filters and how the strength is learned must be those "
            "of the run that they come from."
        )
    if not bool(tree.finite(start)):
        raise ConfigError(
            "start: expected finite meta-parameters, got NaN or infinity. Hint: take those of an earlier "
            "checkpoint or run."
        )
