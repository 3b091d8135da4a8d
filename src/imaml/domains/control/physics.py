"""Plants to be controlled: their accelerations, what a state costs, and how a state moves on.

A state is positions and velocities, (2 d,). It moves by semi-implicit Euler: velocities by the acceleration,
then positions by the new velocities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

GRAVITY = 9.81  # m / s^2

Accelerations = Callable[[Array, Array, Array, Array], Array]


def pendulum(positions: Array, velocities: Array, controls: Array, physics: Array) -> Array:
    """Angle from upright, rad; torque, N m; physics: mass (kg), length (m), friction (N m s)."""
    mass, length, friction = physics
    inertia = mass * length**2
    return GRAVITY / length * jnp.sin(positions) + (controls - friction * velocities) / inertia


def cart_pole(positions: Array, velocities: Array, controls: Array, physics: Array) -> Array:
    """Place (m) and angle from upright (rad); force, N; physics: masses of cart and pole (kg), length (m).

    The pole's mass is at its end, at `length`.
    """
    cart, pole, length = physics
    sine, cosine = jnp.sin(positions[1]), jnp.cos(positions[1])
    swing = pole * length * velocities[1] ** 2 * sine
    along = (controls[0] + swing - pole * GRAVITY * sine * cosine) / (cart + pole * sine**2)
    return jnp.array([along, (GRAVITY * sine - along * cosine) / length])


def quadrotor(positions: Array, velocities: Array, controls: Array, physics: Array) -> Array:
    """Place (m, m) and tilt (rad); thrusts over those of hovering at 1 kg, N; physics: mass, inertia, drag.

    Two rotors 0.25 m from the middle, in a vertical plane; mass in kg, inertia in kg m^2, drag in N s / m.
    """
    mass, inertia, drag = physics
    tilt, thrusts = positions[2], controls + GRAVITY / 2
    lift = jnp.sum(thrusts)
    return jnp.array(
        [
            (-lift * jnp.sin(tilt) - drag * velocities[0]) / mass,
            (lift * jnp.cos(tilt) - drag * velocities[1]) / mass - GRAVITY,
            0.25 * (thrusts[1] - thrusts[0]) / inertia,
        ]
    )


@dataclass(frozen=True)
class Kind:
    """One kind of plant.

    angles: which positions are angles. begin, goal: positions at the begin and at the end; both at rest.
    weights: of the squared distance to the goal, positions and velocities. effort: of squared controls. most:
    the control limit. accelerations: typical, by which they are scaled. lowest, highest: physics, each task's
    own between these. around, speeds: how far positions and velocities of the data reach. seconds: of a step.
    """

    move: Accelerations
    angles: tuple[bool, ...]
    begin: tuple[float, ...]
    goal: tuple[float, ...]
    weights: tuple[float, ...]
    effort: float
    most: float
    accelerations: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    around: tuple[float, ...]
    speeds: tuple[float, ...]
    actuators: int = 1
    seconds: float = 0.05

    @property
    def freedoms(self) -> int:
        """d, how many positions there are."""
        return len(self.angles)

    def features(self, state: Array, control: Array) -> Array:
        """What a model sees: positions (of angles sine and cosine), velocities and controls, scaled."""
        d = self.freedoms
        positions, velocities = state[:d], state[d:]
        angles = np.array(self.angles)
        first = jnp.where(angles, jnp.sin(positions), positions / jnp.array(self.around, state.dtype))
        turned = jnp.cos(positions)[np.flatnonzero(angles)]
        speeds = velocities / jnp.array(self.speeds, state.dtype)
        return jnp.concatenate([first, turned, speeds, control / self.most])

    @property
    def inputs(self) -> int:
        """How many features there are."""
        return 2 * self.freedoms + sum(self.angles) + self.actuators

    def accelerate(self, state: Array, control: Array, physics: Array) -> Array:
        """The true accelerations, (d,)."""
        return self.move(state[: self.freedoms], state[self.freedoms :], control, physics)

    def onward(self, state: Array, acceleration: Array) -> Array:
        """The state a step later."""
        d = self.freedoms
        velocities = state[d:] + self.seconds * acceleration
        return jnp.concatenate([state[:d] + self.seconds * velocities, velocities])

    def distance(self, state: Array) -> Array:
        """The weighted squared distance to the goal; of angles 2 (1 - cos)."""
        d = self.freedoms
        away = state[:d] - jnp.array(self.goal, state.dtype)
        squares = jnp.where(np.array(self.angles), 2 * (1 - jnp.cos(away)), jnp.square(away))
        return jnp.array(self.weights, state.dtype) @ jnp.concatenate([squares, jnp.square(state[d:])])


KINDS: dict[str, Kind] = {
    "pendulum": Kind(
        pendulum,
        angles=(True,), begin=(np.pi,), goal=(0.0,), weights=(1.0, 0.05), effort=0.01, most=4.0,
        accelerations=(15.0,), lowest=(0.5, 0.6, 0.0), highest=(1.5, 1.4, 0.3),
        around=(np.pi,), speeds=(6.0,),
    ),
    "cart-pole": Kind(
        cart_pole,
        angles=(False, True), begin=(0.0, np.pi), goal=(0.0, 0.0), weights=(0.5, 1.0, 0.05, 0.05),
        effort=0.002, most=15.0, accelerations=(10.0, 20.0), lowest=(0.6, 0.1, 0.4), highest=(1.6, 0.6, 1.0),
        around=(2.0, np.pi), speeds=(3.0, 6.0),
    ),
    "quadrotor": Kind(
        quadrotor,
        angles=(False, False, True), begin=(-1.5, -1.0, 0.0), goal=(0.0, 0.0, 0.0),
        weights=(1.0, 1.0, 0.5, 0.1, 0.1, 0.05), effort=0.01, most=4.0, accelerations=(8.0, 8.0, 40.0),
        lowest=(0.7, 0.02, 0.0), highest=(1.3, 0.08, 0.6), around=(2.0, 2.0, 1.0), speeds=(3.0, 3.0, 4.0),
        actuators=2,
    ),
}  # fmt: skip
