"""One outer step, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..core import tree
from ..core.compile import whole_program
from ..core.errors import ConfigError
from ..domains.base import sample_many
from ..meta.gradient import AXIS, MetaGradient


def devices_mesh(tasks: int) -> Mesh | None:
    """A mesh over as many devices as can share `tasks` evenly, or None where that is just one."""
    found = jax.devices()
    while len(found) > 1 and tasks % len(found):
        found = found[:-1]
    return Mesh(np.array(found), (AXIS,)) if len(found) > 1 else None


def make_step(
    method: MetaGradient, transform: Any, tasks: int, average: float, every: int = 1, last: int = 0
) -> Callable:
    """The jitted (domain, state, key) -> (state, report): sample, meta-gradient, update.

    Episodes come from `fold_in(key, step)`, so step k is the same whatever came before. Where no task is
    usable or the gradient is not finite the state stays as it was; the host then raises. every, last: errors
    are estimated in every so many steps (0: in none), and in the last one; in the others they are NaN and
    cost nothing.
    """
    import optax

    def spread(drawn: Any) -> Any:
        if method.mesh is None:
            return drawn
        return jax.lax.with_sharding_constraint(drawn, NamedSharding(method.mesh, PartitionSpec(AXIS)))

    def step(domain: Any, state: dict[str, Any], key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        sample_key, method_key = jax.random.split(jax.random.fold_in(key, state["step"]))
        batch = sample_many(domain, sample_key, "train", tasks, spread)
        number = state["step"] + 1
        due = every == 1 if every < 2 else (number % every == 0) | (number == last)
        gradient, metrics = method(state["theta"], batch, method_key, state["step"], due)
        size = tree.norm(gradient)
        good = jnp.isfinite(size) & jnp.any(metrics.used)
        updates, memory = transform.update(gradient, state["optimiser"], state["theta"])
        theta = optax.apply_updates(state["theta"], updates)
        new = {"theta": theta, "optimiser": memory, "average": {}}
        if average:
            new["average"] = jax.tree.map(
                lambda a, t: average * a + (1 - average) * t, state["average"], theta
            )
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, {k: state[k] for k in new})
        kept["step"] = state["step"] + good.astype(jnp.int32)
        return kept, {"gradient_norm": size, "metrics": metrics}

    return whole_program(step)


def initial_state(
    domain: Any, method: MetaGradient, transform: Any, key: Array, average: float, start: Any = None
) -> dict[str, Any]:
    """The state of step 0: a tree of arrays. start: theta to go on from, or None for a fresh one."""
    theta = method.init(domain, key)
    if start is not None:
        check_theta(start, theta)
        theta = jax.tree.map(lambda old, new: jnp.asarray(old, new.dtype), start, theta)
    return {
        "theta": theta,
        "optimiser": transform.init(theta),
        "average": jax.tree.map(jnp.copy, theta) if average else {},
        "step": jnp.zeros((), jnp.int32),
    }


def check_theta(start: Any, fresh: Any) -> None:
    """Refuses a theta to go on from that is not like a fresh one, or not finite (ConfigError)."""
    if not tree.same(start, fresh):
        raise ConfigError(
            f"start: theta is not as this domain and method need it: {tree.apart(start, fresh)}. Ways, "
            "filters and how the strength is learned must be those of the run that it comes from."
        )
    if not bool(tree.finite(start)):
        raise ConfigError("start: theta holds NaN or infinity; take that of an earlier checkpoint or run.")
