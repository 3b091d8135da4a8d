"""Trajectory optimisation by iterative LQR with control limits, and its derivative by one more Riccati sweep.

    minimise over u_0 .. u_T-1      J = sum_t running(x_t, u_t, p) + final(x_T, p)
    where                           x_t+1 = dynamics(x_t, u_t, p),     low <= u_t <= high

Iterative LQR (Li and Todorov 2004; with limits Tassa, Mansard and Todorov 2014) solves a linear-quadratic
problem at each step, backwards in time. At the solution, dJ/du = 0 for the controls that are not at a limit,
so by the implicit function theorem

    du*/dp = - J_uu^-1 J_up

and J_uu^-1 v is the solution of one more linear-quadratic problem, which includes the curvature of the
dynamics (the Lagrangian's Hessian). Its cost is linear in the horizon and does not depend on the number of
iterations (Amos et al. 2018; IDOC, Xu, Gould and Teo 2023). Here p is any tree of arrays.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import cho_solve

from ..core.errors import ConfigError, StructureError
from ..core.fields import Checked, PositiveFloat, PositiveInt
from ..core.solution import Ending, Solution
from ..core.tree import Tree
from .base import to_tolerance

# Traced once where a program needs it more than once; the plant is static.
_traced_once = functools.partial(jax.jit, static_argnums=0)

SIZES = 8  # of the step in a line search, each 0.4 of the last
RAISED, LOWERED, LEAST, MOST = 8.0, 0.25, 1e-9, 1e8  # how far Q_uu is shifted, relative to its trace


class Trajectory(NamedTuple):
    """A plan; followed in another plant it is u_t + gains_t (x_t - states_t).

    Attributes:
        states: (T + 1, n).
        controls: (T, m).
        gains: Feedback gains about them, (T, m, n).
        cost: J, a scalar.
    """

    states: Array
    controls: Array
    gains: Array
    cost: Array


class _Stage(NamedTuple):
    """A linear-quadratic problem at one time: the dynamics' Jacobians, and the cost's derivatives."""

    fx: Array
    fu: Array
    xx: Array
    ux: Array
    uu: Array
    x: Array
    u: Array


class _Quadratic(NamedTuple):
    """A linear-quadratic problem about a trajectory; leaves of `stages` are (T, ...)."""

    stages: _Stage
    end_xx: Array
    end_x: Array


class _State(NamedTuple):
    """The state of the iteration: the best plan so far, the shift of Q_uu, max |dJ/du|, and how it goes."""

    controls: Array
    states: Array
    cost: Array
    shift: Array
    residual: Array
    steps: Array
    stuck: Array


def _boxed(matrix: Array, vector: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The argmin of k.matrix.k / 2 + vector.k over low <= k <= high, and which are free; projected Newton.

    Tassa, Mansard and Todorov (2014), section III.C. A fixed number of iterations instead of a line search
    and a test: the boxes have few entries, and under vmap each iteration is one small batched solve.
    """
    size = vector.shape[0]

    def newton(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        k = state[0]
        slope = vector + matrix @ k
        free = ~(((k <= low) & (slope > 0)) | ((k >= high) & (slope < 0)))
        held = jnp.where(free, 0, k)
        new = held - _solve_free(matrix, vector + matrix @ held, free)
        return jnp.clip(new, low, high), free

    begin = jnp.clip(jnp.zeros_like(vector), low, high), jnp.ones(size, bool)
    return lax.fori_loop(0, 2 * size + 1, newton, begin)


def _solve_free(matrix: Array, right: Array, free: Array) -> Array:
    """matrix^-1 right among the free, zero in the others; right (m,) or (m, k). NaN where not positive."""
    both = free[:, None] & free[None, :]
    factor = jnp.linalg.cholesky(jnp.where(both, matrix, jnp.eye(free.size, dtype=matrix.dtype)))
    columns = right if right.ndim == 2 else right[:, None]
    found = cho_solve((factor, True), jnp.where(free[:, None], columns, 0))
    return found.reshape(right.shape)


# What one time of a sweep does with Q_u, Q_ux and Q_uu, and what else it is given: (k, gains).
_Choice = Callable[[Array, Array, Array, Tree], tuple[Array, Array]]


def _sweep(problem: _Quadratic, choose: _Choice, given: Tree) -> tuple[Array, Array]:
    """The Riccati sweep: k (T, m) and gains (T, m, n), as `choose` has them; leaves of `given` are (T, ...).

    Tassa, Mansard and Todorov (2014), equations 5 to 8, with V' the value of the time after:

        Q_x  = l_x  + f_x' V'_x             Q_u  = l_u  + f_u' V'_x
        Q_xx = l_xx + f_x' V'_xx f_x        Q_ux = l_ux + f_u' V'_xx f_x        Q_uu = l_uu + f_u' V'_xx f_u
        V_x  = Q_x + gains' (Q_uu k + Q_u) + Q_ux' k
        V_xx = Q_xx + gains' Q_uu gains + gains' Q_ux + Q_ux' gains
    """

    def step(
        after: tuple[Array, Array], here: tuple[_Stage, Tree]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        vxx, vx = after
        stage, given = here
        fx, fu = stage.fx, stage.fu
        qxx, qux, quu = stage.xx + fx.T @ vxx @ fx, stage.ux + fu.T @ vxx @ fx, stage.uu + fu.T @ vxx @ fu
        qx, qu = stage.x + fx.T @ vx, stage.u + fu.T @ vx
        k, gains = choose(qu, qux, quu, given)
        vx = qx + gains.T @ (quu @ k + qu) + qux.T @ k
        vxx = qxx + gains.T @ quu @ gains + gains.T @ qux + qux.T @ gains
        return (0.5 * (vxx + vxx.T), vx), (k, gains)  # symmetric but for rounding

    return lax.scan(step, (problem.end_xx, problem.end_x), (problem.stages, given), reverse=True)[1]


def _backward(problem: _Quadratic, shift: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The sweep of iterative LQR; k is within its limits low and high, (T, m).

        k = argmin Q_u.k + k.Q_uu.k / 2 within the limits              gains = -Q_uu^-1 Q_ux among the free

    Both are NaN from the last time on whose Q_uu is not positive. The shift is added to Q_uu for k and the
    gains, not in the value function, which stays that of the plan.
    """

    def choose(qu: Array, qux: Array, quu: Array, limits: tuple[Array, Array]) -> tuple[Array, Array]:
        shifted = quu + shift * jnp.eye(quu.shape[0], dtype=quu.dtype)
        k, free = _boxed(shifted, qu, *limits)
        return k, -_solve_free(shifted, qux, free)

    return _sweep(problem, choose, (low, high))


@dataclass(frozen=True)
class ILQR(Checked):
    """Iterative LQR for one kind of plant; hashable, with static functions.

    Args:
        dynamics: (state (n,), control (m,), p) -> the next state, smooth, of any p, a tree of arrays.
        running: (state, control, p) -> the cost of a time, a scalar.
        final: (state, p) -> the cost of the end, a scalar.
        low: The lower limit of every control, or None.
        high: The upper limit, or None.
        steps: The most iterations.
        tolerance: Stop where the largest entry of dJ/du among free controls is at most this.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> push = ILQR(lambda x, u, p: x + u, lambda x, u, p: 0.5 * p * u @ u, lambda x, p: 0.5 * x @ x)
        >>> start, guess = jnp.ones(1), jnp.zeros((1, 1))
        >>> push.controls(3.0, start, guess)  # -1 / (1 + p)
        Array([[-0.25]], dtype=float32)
        >>> jax.grad(lambda p: push.controls(p, start, guess).sum())(3.0).round(4)  # 1 / (1 + p)^2
        Array(0.0625, dtype=float32, weak_type=True)

    References:
        Tassa, Mansard and Todorov (2014), Control-limited differential dynamic programming.
        Amos et al. (2018), Differentiable MPC for end-to-end planning and control.
    """

    dynamics: Callable[[Array, Array, Tree], Array]
    running: Callable[[Array, Array, Tree], Array]
    final: Callable[[Array, Tree], Array]
    low: float | None = None
    high: float | None = None
    steps: PositiveInt = 100
    tolerance: PositiveFloat = 1e-6

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        super().__post_init__()
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"ILQR: low: expected a number below high={self.high!r}, got {self.low!r}.")

    @_traced_once
    def rollout(self, parameters: Tree, start: Array, controls: Array) -> Array:
        """Simulate the plant.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            controls: (T, m).

        Returns:
            The states that the controls lead through, (T + 1, n).
        """

        def step(state: Array, control: Array) -> tuple[Array, Array]:
            following = self.dynamics(state, control, parameters)
            return following, following

        return jnp.concatenate([start[None], lax.scan(step, start, controls)[1]])

    def follow(self, parameters: Tree, start: Array, plan: Trajectory) -> tuple[Array, Array]:
        """Follow a plan that was made for another plant or another start, within the control limits.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            plan: The plan.

        Returns:
            The states (T + 1, n) and the controls (T, m).
        """

        def step(state: Array, here: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            about, control, gain = here
            control = jnp.clip(control + gain @ (state - about), self.low, self.high)
            following = self.dynamics(state, control, parameters)
            return following, (following, control)

        _, (after, used) = lax.scan(step, start, (plan.states[:-1], plan.controls, plan.gains))
        return jnp.concatenate([start[None], after]), used

    @_traced_once
    def cost(self, parameters: Tree, states: Array, controls: Array) -> Array:
        """Compute the cost of a trajectory.

        Args:
            parameters: p, a tree of arrays.
            states: (T + 1, n).
            controls: (T, m).

        Returns:
            J, a scalar.
        """
        each = jax.vmap(self.running, (0, 0, None))(states[:-1], controls, parameters)
        return jnp.sum(each) + self.final(states[-1], parameters)

    def objective(self, parameters: Tree, start: Array, controls: Array) -> Array:
        """Compute the cost of controls.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            controls: (T, m).

        Returns:
            J, a scalar.
        """
        return self.cost(parameters, self.rollout(parameters, start, controls), controls)

    def __call__(self, parameters: Tree, start: Array, guess: Array) -> Solution:
        """Find a plan; not to be differentiated (see `controls`). Compile it with `jax.jit`.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            guess: Controls to improve on, (T, m).

        Returns:
            A Solution whose value is a `Trajectory`. `stats.residual` is the largest entry of dJ/du among the
            free controls. The status says OUT_OF_STEPS, or STAGNATED where no step lowered J any more.

        Raises:
            StructureError: If the start or the guess have other ranks.
        """
        if jnp.ndim(start) != 1 or jnp.ndim(guess) != 2:
            raise StructureError(
                "ILQR: expected a start of shape (n,) and a guess of shape (T, m), got "
                f"{jnp.shape(start)} and {jnp.shape(guess)}."
            )
        parameters, start, guess = lax.stop_gradient((parameters, start, guess))

        def going(state: _State) -> Array:
            return (state.residual > self.tolerance) & (state.steps < self.steps) & ~state.stuck

        advance = lambda state: self._improve(parameters, start, state)  # noqa: E731
        end = lax.while_loop(going, advance, self._begin(parameters, start, guess))
        gains = self.feedback(parameters, end.states, end.controls)
        value = Trajectory(end.states, end.controls, gains, end.cost)
        failed = jnp.where(end.stuck, int(Ending.STAGNATED), int(Ending.OUT_OF_STEPS))
        finite = jnp.isfinite(end.cost)
        return to_tolerance(value, end.steps, end.residual, self.tolerance, failed, finite)

    @_traced_once
    def feedback(self, parameters: Tree, states: Array, controls: Array) -> Array:
        """Compute feedback gains about a trajectory; they may be differentiated.

        Args:
            parameters: p, a tree of arrays.
            states: (T + 1, n).
            controls: (T, m).

        Returns:
            The gains of the linear-quadratic problem there, (T, m, n). They are zero for controls that are
            held at a limit, and at a time from which on the trajectory is not a minimum of that problem.
        """
        about = self._about(parameters, states, controls, False)
        free = self._gradient(parameters, states[0], controls)[1]

        def choose(qu: Array, qux: Array, quu: Array, free: Array) -> tuple[Array, Array]:
            positive = jnp.all(jnp.isfinite(jnp.linalg.cholesky(quu)))
            safe = jnp.where(positive, quu, jnp.eye(free.size, dtype=quu.dtype))
            return jnp.zeros_like(qu), -_solve_free(safe, qux, free & positive)  # k plays no part in gains

        return _sweep(about, choose, free)[1]

    def iterated(self, parameters: Tree, start: Array, guess: Array) -> Array:
        """Find the controls by all of `steps` iterations, differentiated through every one of them.

        It is what `controls` is compared with: its memory grows with the iterations.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            guess: Controls to improve on, (T, m).

        Returns:
            The controls, (T, m).
        """

        def improve(state: _State, _: None) -> tuple[_State, None]:
            return self._improve(parameters, start, state), None

        return lax.scan(improve, self._begin(parameters, start, guess), None, self.steps)[0].controls

    def _begin(self, parameters: Tree, start: Array, guess: Array) -> _State:
        """The state before the first iteration."""
        controls = jnp.clip(guess, self.low, self.high)
        states = self.rollout(parameters, start, controls)
        return _State(
            controls=controls,
            states=states,
            cost=self.cost(parameters, states, controls),
            shift=jnp.asarray(LEAST, states.dtype),
            residual=self._slope(parameters, start, controls),
            steps=jnp.asarray(0),
            stuck=jnp.asarray(False),
        )

    def _improve(self, parameters: Tree, start: Array, state: _State) -> _State:
        """Two sweeps backwards, and the best of a line of steps forwards along each.

        One sweep is iterative LQR's own, without the curvature of the dynamics, whose steps are good far from
        a solution; the other is Newton's, whose are good near it.
        """
        room = self._room(state.controls)

        # The shift of Q_uu is relative to the mean trace of l_uu, so that it has the units of the cost.
        def sweep(curved: bool) -> tuple[Array, Array]:
            about = self._about(parameters, state.states, state.controls, curved)
            scale = jnp.maximum(jnp.mean(jnp.abs(jnp.trace(about.stages.uu, axis1=-2, axis2=-1))), 1e-12)
            return _backward(about, state.shift * scale, *room)

        def attempt(size: Array, change: Array, gains: Array) -> tuple[Array, Array, Array]:
            tried = Trajectory(state.states, state.controls + size * change, gains, state.cost)
            states, controls = self.follow(parameters, start, tried)
            return states, controls, self.cost(parameters, states, controls)

        # Both sweeps, and a line search along each, all sizes at once. A sweep that met a Q_uu that is not
        # positive has NaN among its gains, and offers nothing.
        change, gains = jax.tree.map(lambda *pair: jnp.stack(pair), sweep(False), sweep(True))
        positive = jnp.all(jnp.isfinite(gains), axis=(1, 2, 3))
        sizes = 0.4 ** jnp.arange(SIZES, dtype=state.cost.dtype)
        along = jax.vmap(jax.vmap(attempt, (0, None, None)), (None, 0, 0))(sizes, change, gains)
        states, controls, costs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), along)
        costs = jnp.where(jnp.isfinite(costs) & jnp.repeat(positive, SIZES), costs, jnp.inf)
        # Near the solution all costs agree to rounding, so the smallest slope decides among the lowest.
        rounding = 8 * jnp.finfo(costs.dtype).eps * jnp.abs(state.cost)
        slopes = jax.vmap(lambda u: self._slope(parameters, start, u))(controls)
        best = jnp.argmin(jnp.where(costs <= jnp.min(costs) + rounding, slopes, jnp.inf))
        residual = slopes[best]
        # It is taken where J falls, or where J stays and its slope falls; else the shift is raised.
        better = (costs[best] < state.cost - rounding) | (residual < state.residual)
        better = (costs[best] <= state.cost + rounding) & better
        keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        return _State(
            controls=keep(controls[best], state.controls),
            states=keep(states[best], state.states),
            cost=keep(costs[best], state.cost),
            shift=jnp.clip(state.shift * jnp.where(better, LOWERED, RAISED), LEAST, MOST),
            residual=keep(residual, state.residual),
            steps=state.steps + 1,
            stuck=~better & (state.shift >= MOST),
        )

    @_traced_once
    def _slope(self, parameters: Tree, start: Array, controls: Array) -> Array:
        """The largest entry of dJ/du among the free controls."""
        slope, free = self._gradient(parameters, start, controls)
        return jnp.max(jnp.abs(jnp.where(free, slope, 0)))

    def _gradient(self, parameters: Tree, start: Array, controls: Array) -> tuple[Array, Array]:
        """The gradient dJ/du, and which controls it does not hold at a limit."""
        slope = jax.grad(lambda u: self.objective(parameters, start, u))(controls)
        low, high = self._room(controls)
        return slope, ~(((low >= 0) & (slope > 0)) | ((high <= 0) & (slope < 0)))

    def _room(self, controls: Array) -> tuple[Array, Array]:
        """How far controls may go down and up."""
        low = -jnp.inf if self.low is None else self.low
        high = jnp.inf if self.high is None else self.high
        return low - controls, high - controls

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _about(self, parameters: Tree, states: Array, controls: Array, curved: bool) -> _Quadratic:
        """The linear-quadratic problem about a trajectory; curved: with the curvature of the dynamics."""
        before, times = states[:-1], (0, 0, None)
        fx, fu = jax.vmap(jax.jacfwd(self.dynamics, (0, 1)), times)(before, controls, parameters)
        x, u = jax.vmap(jax.grad(self.running, (0, 1)), times)(before, controls, parameters)
        end_x = jax.grad(self.final)(states[-1], parameters)

        def back(later: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            fx, x = here
            return x + fx.T @ later, later

        costates = lax.scan(back, end_x, (fx, x), reverse=True)[1]

        def lagrangian(x: Array, u: Array, costate: Array) -> Array:
            cost = self.running(x, u, parameters)
            return cost + costate @ self.dynamics(x, u, parameters) if curved else cost

        (xx, _), (ux, uu) = jax.vmap(jax.hessian(lagrangian, (0, 1)))(before, controls, costates)
        end_xx = jax.hessian(self.final)(states[-1], parameters)
        return _Quadratic(_Stage(fx, fu, xx, ux, uu, x, u), end_xx, end_x)

    def controls(self, parameters: Tree, start: Array, guess: Array) -> Array:
        """Find the optimal controls, to be differentiated in parameters and start, in either mode.

        One Riccati sweep gives the derivative of the solution; it does not depend on the iterations. It is as
        accurate as the solution (`stats.residual` of the plan), and 0 for controls held at a limit.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            guess: Controls to improve on, (T, m).

        Returns:
            The controls, (T, m).
        """
        found: Trajectory = lax.stop_gradient(self(parameters, start, guess).value)
        return self.through(parameters, start, found)

    def through(self, parameters: Tree, start: Array, plan: Trajectory) -> Array:
        """Return a plan's controls as a function of parameters and start; see `controls`.

        Args:
            parameters: p, a tree of arrays.
            start: The first state, (n,).
            plan: A plan found for these parameters and this start.

        Returns:
            The plan's controls, (T, m), with their derivatives.
        """
        solved = lax.stop_gradient(plan.controls)
        fixed = lax.stop_gradient((parameters, start))
        free = self._gradient(*fixed, solved)[1]

        # The root of dJ/du = 0 in the controls that are free, which are taken as they are at the solution.
        def residual(controls: Array) -> Array:
            some = jnp.where(free, controls, solved)
            slope = jax.grad(lambda u: self.objective(parameters, start, u))(some)
            return jnp.where(free, slope, controls - solved)

        def sweep(_: Callable[[Array], Array], right: Array) -> Array:
            about = self._about(fixed[0], self.rollout(fixed[0], fixed[1], solved), solved, True)
            return _inverse(about, free, right)

        def linear(product: Callable, right: Array) -> Array:
            return lax.custom_linear_solve(product, right, sweep, symmetric=True)

        return lax.custom_root(residual, solved, lambda _, guess: guess, linear)


def _inverse(about: _Quadratic, free: Array, right: Array) -> Array:
    """J_uu^-1 right among the free controls, right in the others, (T, m).

    J_uu du = right is the stationarity of a linear-quadratic problem with the slopes -right, so it is
    solved by a sweep back for the gains, and one forth for the controls (Amos et al. 2018, Module 2).
    """

    def choose(qu: Array, qux: Array, quu: Array, free: Array) -> tuple[Array, Array]:
        return -_solve_free(quu, qu, free), -_solve_free(quu, qux, free)

    stages = about.stages._replace(x=jnp.zeros_like(about.stages.x), u=-right)
    slopes = about._replace(stages=stages, end_x=jnp.zeros_like(about.end_x))
    k, gains = _sweep(slopes, choose, free)

    # The solution starts at a change of the state of zero: du_t = k_t + gains_t dx_t.
    def forth(state: Array, here: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        fx, fu, k, gain = here
        control = k + gain @ state
        return fx @ state + fu @ control, control

    _, controls = lax.scan(forth, jnp.zeros_like(about.end_x), (about.stages.fx, about.stages.fu, k, gains))
    return jnp.where(free, controls, right)
