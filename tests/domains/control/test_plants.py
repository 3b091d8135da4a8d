"""Plants: physics conserves energy, and the cost of a model's plan is differentiated as differences say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.domains.control.physics import GRAVITY, KINDS

pytestmark = pytest.mark.usefixtures("ranks_mixed")


def energy_of_cart_pole(state, physics):
    """Kinetic and potential energy of a cart with a point mass on a rod, upright at 0."""
    (_, angle, speed, turning), (cart, pole, length) = state, physics
    across = speed + length * turning * jnp.cos(angle)
    down = length * turning * jnp.sin(angle)
    return (
        0.5 * cart * speed**2 + 0.5 * pole * (across**2 + down**2) + pole * GRAVITY * length * jnp.cos(angle)
    )


def energy_of_pendulum(state, physics):
    """Kinetic and potential energy of a point mass on a rod, upright at 0."""
    (angle, turning), (mass, length, _) = state, physics
    return 0.5 * mass * (length * turning) ** 2 + mass * GRAVITY * length * jnp.cos(angle)


@pytest.mark.parametrize(
    ("name", "energy", "physics"),
    [("pendulum", energy_of_pendulum, [0.8, 1.2, 0.0]), ("cart-pole", energy_of_cart_pole, [1.1, 0.4, 0.7])],
)
def test_without_controls_and_friction_energy_does_not_change(name, energy, physics):
    """dE/dt = dE/dpositions . velocities + dE/dvelocities . accelerations is zero."""
    kind, physics = KINDS[name], jnp.array(physics)
    d = kind.freedoms
    for seed in range(5):
        state = jax.random.normal(jax.random.key(seed), (2 * d,))
        slope = jax.grad(energy)(state, physics)
        pushed = kind.move(state[:d], state[d:], jnp.zeros(kind.actuators), physics)
        np.testing.assert_allclose(slope[:d] @ state[d:] + slope[d:] @ pushed, 0, atol=1e-12)


def test_a_quadrotor_hovers_and_its_thrust_points_where_it_is_tilted():
    kind, physics = KINDS["quadrotor"], jnp.array([1.0, 0.05, 0.2])
    zero = jnp.zeros(3)
    np.testing.assert_allclose(kind.move(zero, zero, jnp.zeros(2), physics), 0, atol=1e-12)
    left = kind.move(jnp.array([0, 0, 0.3]), zero, jnp.zeros(2), physics)
    np.testing.assert_allclose(left, [-GRAVITY * np.sin(0.3), GRAVITY * (np.cos(0.3) - 1), 0], atol=1e-12)


@pytest.mark.slow
def test_the_cost_of_a_plan_is_differentiated_as_differences_say():
    """In one direction of phi, by central differences of plans that are made anew."""
    domain = imaml.plants(horizon=15, hidden=(6,), iterations=300, tolerance=1e-11, judge="control")
    phi = jax.tree.map(lambda leaf: leaf.astype(float), domain.init(jax.random.key(0)))
    task = jax.tree.map(
        lambda leaf: leaf.astype(float), jax.jit(lambda k: domain.sample(k, "train"))(jax.random.key(1))
    )
    away = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), phi)
    size, loss = 1e-4, jax.jit(lambda phi: domain.query_loss(phi, None, task.query))
    moved = [loss(jax.tree.map(lambda p, d, s=s: p + s * size * d, phi, away)) for s in (1, -1)]
    slope = jax.jit(jax.grad(lambda phi: domain.query_loss(phi, None, task.query)))(phi)
    along = sum(jnp.vdot(one, other) for one, other in zip(*map(jax.tree.leaves, (slope, away)), strict=True))
    assert abs(float(along)) > 1e-3
    np.testing.assert_allclose(along, (moved[0] - moved[1]) / (2 * size), rtol=1e-4)
