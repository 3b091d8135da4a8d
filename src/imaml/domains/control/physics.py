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
    """Return a pendulum's acceleration.

    Args:
        positions: The angle from upright, rad.
        velocities: Its rate.
        controls: The torque, N m.
        physics: Mass (kg), length (m), friction (N m s).

    Returns:
        ``(1,)``.
    """
    mass, length, friction = physics
    inertia = mass * length**2
    return GRAVITY / length * jnp.sin(positions) + (controls - friction * velocities) / inertia


def cart_pole(positions: Array, velocities: Array, controls: Array, physics: Array) -> Array:
    """Return the accelerations of a cart with a pole, whose mass is at its end.

    Args:
        positions: Place (m) and angle from upright (rad).
        velocities: Their rates.
        controls: The force on the cart, N.
        physics: Masses of cart and pole (kg), length of the pole (m).

    Returns:
        ``(2,)``.
    """
    cart, pole, length = physics
    sine, cosine = jnp.sin(positions[1]), jnp.cos(positions[1])
    swing = pole * length * velocities[1] ** 2 * sine
    along = (controls[0] + swing - pole * GRAVITY * sine * cosine) / (cart + pole * sine**2)
    return jnp.array([along, (GRAVITY * sine - along * cosine) / length])


def quadrotor(positions: Array, velocities: Array, controls: Array, physics: Array) -> Array:
    """Return the accelerations of a quadrotor in a vertical plane, two rotors 0.25 m from its middle.

    Args:
        positions: Place (m, m) and tilt (rad).
        velocities: Their rates.
        controls: Thrusts above those that hold 1 kg, N.
        physics: Mass (kg), inertia (kg m^2), drag (N s / m).

    Returns:
        ``(3,)``.
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

    Attributes:
        move: Returns accelerations.
        angles: Which positions are angles.
        begin: The first positions, at rest.
        goal: The wanted positions, at rest.
        weights: Weights of the squared distances to the goal, positions and velocities.
        effort: The weight of squared controls.
        most: The control limit.
        accelerations: Typical accelerations, by which they are scaled.
        lowest: The least physics of a task.
        highest: The largest physics of a task.
        around: The largest positions of the data.
        speeds: The largest velocities of the data.
        actuators: The number of controls.
        seconds: The length of a step.
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
        """The number d of positions."""
        return len(self.angles)

    def features(self, state: Array, control: Array) -> Array:
        """Return a model's inputs, each of order 1.

        Positions that are angles enter as sine and cosine. Other positions and the velocities are divided by
        the largest of the data, and controls by their limit.

        Args:
            state: Positions and velocities, ``(2 d,)``.
            control: ``(actuators,)``, N or N m.

        Returns:
            ``(inputs,)``: positions or sines, cosines, velocities, controls.
        """
        d = self.freedoms
        positions, velocities = state[:d], state[d:]
        angles = np.array(self.angles)
        first = jnp.where(angles, jnp.sin(positions), positions / jnp.array(self.around, state.dtype))
        turned = jnp.cos(positions)[np.flatnonzero(angles)]
        speeds = velocities / jnp.array(self.speeds, state.dtype)
        return jnp.concatenate([first, turned, speeds, control / self.most])

    @property
    def inputs(self) -> int:
        """The number of features."""
        return 2 * self.freedoms + sum(self.angles) + self.actuators

    def accelerate(self, state: Array, control: Array, physics: Array) -> Array:
        """Return the true accelerations.

        Args:
            state: Positions and velocities, ``(2 d,)``.
            control: ``(actuators,)``.
            physics: The plant's physics, ``(k,)``.

        Returns:
            ``(d,)``, m/s^2 or rad/s^2.
        """
        return self.move(state[: self.freedoms], state[self.freedoms :], control, physics)

    def onward(self, state: Array, acceleration: Array) -> Array:
        """Return the state one step later, by semi-implicit Euler.

        Args:
            state: Positions and velocities, ``(2 d,)``.
            acceleration: ``(d,)``.

        Returns:
            The next state, ``(2 d,)``.
        """
        d = self.freedoms
        velocities = state[d:] + self.seconds * acceleration
        return jnp.concatenate([state[:d] + self.seconds * velocities, velocities])

    def distance(self, state: Array) -> Array:
        """Return the weighted squared distance to the goal.

        The square of an angle's difference is ``2 (1 - cos)``, which has no jump at a full turn.

        Args:
            state: Positions and velocities, ``(2 d,)``.

        Returns:
            A scalar.
        """
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
