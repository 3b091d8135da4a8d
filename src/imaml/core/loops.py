"""A while loop that is safe under `vmap`."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import Array, lax

State = TypeVar("State")


def repeat_while(going: Callable[[State], Array], advance: Callable[[State], State], state: State) -> State:
    """Advance a state while a condition holds; `lax.while_loop`, but safe under `vmap`.

    Under `vmap` a while loop goes on while its condition is true of any task, and asks it anew which tasks to
    advance. Computed twice, in two places, it may be rounded in two ways. A task of which it is true in the
    one and not in the other never advances, and the loop never ends (docs/gotchas.md, 13). So here the
    condition is computed once for each state, and its answer carried.

    Args:
        going: state -> boolean scalar.
        advance: state -> the next state.
        state: The first state, a tree of arrays.

    Returns:
        The first of state, advance(state), advance(advance(state)), ... for which `going` is False.

    Example:
        >>> import jax.numpy as jnp
        >>> int(repeat_while(lambda n: n < 10, lambda n: 2 * n, jnp.asarray(3)))
        12
    """

    def step(carry: tuple[State, Array]) -> tuple[State, Array]:
        new = advance(carry[0])
        return new, going(new)

    return lax.while_loop(lambda carry: carry[1], step, (state, going(state)))[0]


def halved_while(too_long: Callable[[Array], Array], most: int, like: Array) -> Array:
    """Halve the length of a step, from 1 on, while it is too long; a line search by backtracking.

    Args:
        too_long: length -> boolean scalar.
        most: The most halvings.
        like: A scalar of the dtype of lengths.

    Returns:
        The first of 1, 1/2, 1/4, ... that is not too long; 0.5^most, untested, where all before
        it are.
    """
    length = lambda count: jnp.ldexp(jnp.ones_like(like), -count)  # noqa: E731
    going = lambda count: (count < most) & too_long(length(count))  # noqa: E731
    return length(repeat_while(going, lambda count: count + 1, jnp.asarray(0)))
