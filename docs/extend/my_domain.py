"""A domain in one file: curves of cooling, each known from a few measurements."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import imaml
from imaml.config import Method
from imaml.core.fields import PositiveInt
from imaml.core.tree import Tree
from imaml.domains.arrays import Field
from imaml.domains.base import cut, split_key


class Measured(NamedTuple):
    """A batch: times ``(n, 1)`` and temperatures ``(n, 1)``."""

    times: Array
    temperatures: Array


@dataclass(frozen=True)
class Error:
    """Half the mean squared error of a network, ``(phi, batch) -> scalar``; hashable, as problems are."""

    network: imaml.MLP

    def __call__(self, phi: Tree, batch: Measured) -> Array:
        """Return the loss."""
        return 0.5 * jnp.mean(jnp.square(self.network.forward(phi, batch.times)[0] - batch.temperatures))


@imaml.recipe("domain")
class CoolingRecipe(imaml.DomainRecipe):
    """The recipe: numbers and names only, so that it goes to JSON. The types of fields are checked."""

    shots: PositiveInt = 5
    queries: PositiveInt = 10
    hidden: PositiveInt = 16

    def build(self) -> Cooling:
        """Return the domain."""
        return Cooling(self)

    @property
    def network(self) -> imaml.MLP:
        """The network from times to temperatures."""
        return imaml.MLP((1, self.hidden, 1), "tanh")


class Cup(NamedTuple):
    """The indices of a task: a rate of cooling, and the times of measurements."""

    rate: Array
    times: Array


@jax.tree_util.register_static
@dataclass(frozen=True)
class Cooling(imaml.DomainBase):
    """Temperatures exp(-rate t), with rate in [0.5, 2] and t in [0, 2]."""

    recipe: CoolingRecipe

    support_type: ClassVar[type] = Measured

    # What is learned ----------------------------------------------------------------------------------------

    @property
    def loss(self) -> Error:
        """The loss of a batch; the inner problem adds the regularisation."""
        return Error(self.recipe.network)

    def metrics(self, phi: Tree, task: imaml.Task) -> dict[str, Array]:
        """Return the scores of adapted parameters; the headline, "loss" by default, is one of them."""
        return {"loss": self.loss(phi, task.query)}

    # Where tasks come from ----------------------------------------------------------------------------------

    def draw(self, key: Array, split: str) -> Cup:
        """Return the indices of one random task. Each split has random numbers of its own."""
        rate, times = jax.random.split(split_key(key, split))
        count = self.recipe.shots + self.recipe.queries
        return Cup(
            jax.random.uniform(rate, (), minval=0.5, maxval=2), 2 * jax.random.uniform(times, (count, 1))
        )

    def gather(self, indices: Cup) -> imaml.Task:
        """Return the task that indices mean."""
        measured = Measured(indices.times, jnp.exp(-indices.rate * indices.times))
        return imaml.Task(*cut(measured, self.recipe.shots))

    # A user's own tasks -------------------------------------------------------------------------------------

    def support_fields(self) -> dict[str, Field]:
        """Return what support data are: two columns of numbers. Query data are like the first."""
        return {"times": Field((1,)), "temperatures": Field((1,))}

    def scenes(self, before: Tree, after: Tree, task: imaml.Task) -> list[imaml.Scene]:
        """Return what the report shows of a task."""
        times = jnp.linspace(0, 2, 50)[:, None]
        lines = {
            name: (times, self.forward(phi, times)) for name, phi in (("before", before), ("after", after))
        }
        return [imaml.Scene("temperature", lines={**lines, "measured": task.support}, x_name="time")]


def main(out: str) -> None:
    """Train, and use what was learned on measurements of one's own."""
    domain = CoolingRecipe().build()
    recipe = Method(
        "imaml", strength=0.1, inner=imaml.GradientDescent(0.2, steps=16), linear=imaml.CG(steps=5)
    )  # a recipe, and no object made by hand, so that the artefact knows how to adapt
    run = imaml.train(
        domain, recipe.build(domain), imaml.Optimiser("adam", 1e-2), out=out, steps=50, validate_every=0
    )
    print(imaml.evaluate(run, tasks=50))
    learner = imaml.load(out)
    predictor = learner.adapt([[0.0], [0.5], [1.0]], [[1.0], [0.61], [0.37]])
    print(predictor.predict([[1.5], [2.0]]))


if __name__ == "__main__":
    main(sys.argv[1])
