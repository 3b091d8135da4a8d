"""The base classes of domains' recipes; see `imaml.domains.base`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, ParamSpec, Protocol, Self, TypeVar

from ..core.errors import ConfigError
from ..core.fields import Checked
from .networks import Network

if TYPE_CHECKING:
    from .base import DomainBase

P = ParamSpec("P")
D = TypeVar("D", covariant=True)


class DomainRecipe(Checked):
    """The base of a domain's recipe: a frozen dataclass that is registered with `@imaml.recipe("domain")`.

    A subclass defines `build`. The other methods have defaults for domains that read no files.

    Attributes:
        reads_table: Whether its tasks come from a table with named columns.
        factorises: Whether its own computations may factorise matrices.
        own_tasks: Whether its tasks are a user's own, like those of `imaml.fit`.
        network: The network that learns the tasks, if there is one.
    """

    owner: ClassVar[str] = "domain"
    reads_table: ClassVar[bool] = False
    factorises: ClassVar[bool] = True
    own_tasks: ClassVar[bool] = False
    network: Network

    def build(self) -> DomainBase:
        """Return the domain, with its data read."""
        raise NotImplementedError

    def without_data(self) -> DomainBase:
        """Return the domain without its data: enough to adapt to a user's own tasks and to predict."""
        return self.build()

    @property
    def data_name(self) -> str:
        """The name of the data, for reports and logs."""
        return type(self).__name__

    def with_data(self, path: str) -> Self:
        """Return this recipe with its data at another path.

        Args:
            path: A file or folder.

        Returns:
            The recipe.

        Raises:
            ConfigError: If the domain reads no data.
        """
        raise ConfigError(
            f"--data {path}: expected a run that reads data, got {type(self).__name__}, which draws its own "
            "tasks. Hint: omit --data, or choose a preset that reads images or a table (imaml presets)."
        )

    def with_objects(self, model: object = None, loss: object = None) -> Self:
        """Return this recipe with the user's model and loss that it was fitted with.

        Args:
            model: The model, as `imaml.fit` takes it, or None for one that the recipe holds.
            loss: The loss, likewise.

        Returns:
            The recipe.

        Raises:
            ConfigError: If the recipe has a network and a loss of its own, or the model has other parameters.
        """
        if model is None and loss is None:
            return self
        raise ConfigError(
            f"load: expected neither model nor loss, as {type(self).__name__} has its own, got "
            f"model={model!r} and loss={loss!r}."
        )

    @property
    def brought(self) -> dict[str, str]:
        """The locations of the user's code that a run needs again, "model" and "loss"; see `imported`."""
        return {}

    def with_tasks(self, tasks: object) -> DomainBase:
        """Return the domain that draws a user's tasks, encoded according to this recipe.

        Args:
            tasks: The tasks, `imaml.Tasks`.

        Returns:
            The domain; all its tasks are in the split "test".

        Raises:
            ConfigError: If the recipe is not of a user's own tasks.
            DataError: If the tasks do not fit.
        """
        raise ConfigError(
            "evaluate: expected a run of imaml.fit to be scored on other tasks, got one of "
            f"{type(self).__name__}. Hint: imaml.evaluate(run, domain)."
        )

    def scored_on(self, path: str) -> Self:
        """Return the recipe for evaluating a run on other data.

        Args:
            path: A file or folder.

        Returns:
            A recipe with the same network, and the data at ``path``.

        Raises:
            ConfigError: If the domain reads no data.
        """
        return self.with_data(path)

    def with_ways(self, ways: int) -> Self:
        """Return the recipe for evaluating a run on tasks with another number of classes.

        Args:
            ways: The number of classes.

        Returns:
            The recipe.

        Raises:
            ConfigError: If the run is for tasks with a fixed number of classes.
        """
        raise ConfigError(
            f"--ways: expected a run whose tasks may have any number of classes, got {type(self).__name__}. "
            "Hint: omit --ways; few-shot images trained with --domain.head=shared have such tasks."
        )

    def published(self) -> Self:
        """Return the recipe as an artefact holds it: without paths and without names of tasks."""
        return self

    def uncalibrated(self) -> Self:
        """Return the recipe without measurements of a run's parameters, which training changes."""
        return self

    def restored(self, stored: Self) -> Self:
        """Return this recipe, read from an artefact, with the fields that only its run's configuration has.

        Args:
            stored: The recipe in the run directory's ``config.json``.

        Returns:
            The recipe.
        """
        return self


class ReadsData(DomainRecipe):
    """The base of a recipe with a field ``data``, the path of its data."""

    data: str | None

    def with_data(self, path: str) -> Self:
        """Return this recipe with its data at another path; ConfigError if it draws its own tasks."""
        if getattr(self, "source", "") == "characters":
            return super().with_data(path)
        return replace(self, data=path)  # type: ignore[type-var]

    @property
    def data_name(self) -> str:
        """The source of the images, or the recipe's kind."""
        return getattr(self, "source", type(self).__name__)

    def published(self) -> Self:
        """Return this recipe without the path."""
        return replace(self, data=None)  # type: ignore[type-var]

    def restored(self, stored: Self) -> Self:
        """Return this recipe with the stored path."""
        return replace(self, data=stored.data)  # type: ignore[type-var]


class Builds(Protocol[D]):
    """A recipe that builds a domain."""

    def build(self) -> D:
        """Return the domain."""
        ...


def builder(recipe: Callable[P, Builds[D]]) -> Callable[P, D]:
    """Return the function that builds a domain from the fields of its recipe.

    Args:
        recipe: The class of the recipe.

    Returns:
        A function with the signature and the docstring of the class.

    Example:
        >>> from imaml.domains.regression import SinusoidRecipe
        >>> sinusoid = builder(SinusoidRecipe)
        >>> sinusoid(shots=5) == SinusoidRecipe(shots=5).build()
        True
    """

    @functools.wraps(recipe, updated=())
    def build(*fields: P.args, **named: P.kwargs) -> D:
        return recipe(*fields, **named).build()

    built = inspect.signature(recipe.build).return_annotation  # type: ignore[attr-defined]
    build.__signature__ = inspect.signature(recipe).replace(return_annotation=built)  # type: ignore[attr-defined]
    return build
