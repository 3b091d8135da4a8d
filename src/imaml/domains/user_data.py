"""How a user's own data become a task of a domain, and how predictions come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol
from zipfile import BadZipFile

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ..core.errors import ConfigError, DataError
from ..core.tree import Tree
from ..problems.base import Task
from .arrays import Field, given, require_fields

Json = dict[str, object]  # the fields of a JSON object


class Encoded(NamedTuple):
    """A user's support data as a domain's inner problem takes them.

    Attributes:
        support: The support batch.
        classes: What the outputs stand for, if predictions are one of several classes; else None.
    """

    support: Tree
    classes: np.ndarray | None = None


class Answers(NamedTuple):
    """Predictions for files, as the command line prints them.

    Attributes:
        rows: One JSON object for each query.
        lines: The same as text.
        about: JSON fields that hold for all rows.
        note: Returns a phrase on how many predictions were right; empty if the query does not say.
    """

    rows: list[Json]
    lines: list[str]
    about: Mapping[str, object] = MappingProxyType({})
    note: Callable[[], str] = str


class Part(NamedTuple):
    """The rows of one of several tasks.

    Attributes:
        support: The rows to learn from, as `encode` takes them; None for no rows.
        query: The rows to predict, as `encode_query` takes them.
        rows: Their places in the whole query.
    """

    support: Tree
    query: Tree
    rows: np.ndarray


class Standalone(NamedTuple):
    """What a predictor that runs without this package needs of a domain.

    Attributes:
        about: How a user's values are coded, JSON.
        support: A blank support batch.
        query: Blank query rows.
    """

    about: Json
    support: Tree
    query: Tree


class Predicts(Protocol):
    """What a domain may ask of a predictor; `imaml.Predictor` is one."""

    @property
    def phi(self) -> Tree:
        """The adapted parameters."""
        ...

    @property
    def classes(self) -> np.ndarray | None:
        """What the outputs stand for, if predictions are classes."""
        ...

    def predict(self, x: object) -> np.ndarray:
        """Return the predictions for query data.

        Args:
            x: Query data, as `DomainBase.encode_query` takes them.

        Returns:
            What `DomainBase.decode` returns, rows first.
        """
        ...

    def predict_proba(self, x: object, uncertainty: bool = False) -> np.ndarray:
        """Return class probabilities.

        Args:
            x: Query data.
            uncertainty: Whether to average over the task's posterior.

        Returns:
            Probabilities ``(n, classes)``.
        """
        ...

    def predict_interval(self, x: object, level: float = 0.9) -> Tree:
        """Return means and intervals of the posterior predictive distribution.

        Args:
            x: Query data.
            level: The probability of each interval, between 0 and 1.

        Returns:
            A tuple with ``mean``, ``low`` and ``high``, arrays ``(n, ...)`` in the user's units.
        """
        ...


class UserData:
    """The part of a domain that reads, encodes and answers a user's own data; `DomainBase` derives from it.

    Attributes:
        support_type: The NamedTuple class of support batches.
        actions: How many actions predictions choose from; 0 if predictions are not actions.
    """

    support_type: ClassVar[Callable[..., Tree]]
    actions: ClassVar[int] = 0

    def support_fields(self) -> dict[str, Field]:
        """Return what each array of a support batch must be, by name, in the batch's order."""
        raise ConfigError(
            f"adapt: expected a domain that encodes data, got {type(self).__name__}. Hint: define "
            "support_type and support_fields (docs/extend/domain.md)."
        )

    def query_field(self) -> Field:
        """Return what the query array must be: like the first array of a support batch."""
        return next(iter(self.support_fields().values()))

    def completed(self, arrays: dict[str, np.ndarray]) -> Mapping[str, ArrayLike]:
        """Return the arrays that a user's support may omit, such as random noise.

        Args:
            arrays: The checked arrays that the user gave, by name; at least one.

        Returns:
            Arrays ``(rows, ...)`` by name, none by default. Those that the user gave take precedence.
        """
        return {}

    def asked(self, query: Tree) -> Array:
        """Return the part of a sampled query batch that `encode_query` takes.

        Args:
            query: The query batch of one task.

        Returns:
            Its first array by default.
        """
        return jax.tree.leaves(query)[0]

    def encode(self, x: object, y: object = None) -> Encoded:
        """Return a user's support data as a batch of the inner problem.

        Args:
            x: A support batch such as ``task.support``, a mapping from its fields' names to arrays, or the
                array of its first field.
            y: The array of its second field, if ``x`` is an array.

        Returns:
            The batch, and the classes that its outputs stand for.

        Raises:
            DataError: If an array is missing, has another shape or dtype, or holds a value that is not
                finite.
        """
        fields = self.support_fields()
        arrays = require_fields(fields, given(x, y, tuple(fields)), self.completed)
        return Encoded(self.support_type(**arrays), np.arange(self.actions) if self.actions else None)

    def encode_query(self, x: Tree) -> Tree:
        """Return query data as rows for `forward`: an array, or a tree of arrays, with one row a prediction.

        Args:
            x: An array as `query_field` says, or a sampled query batch such as ``task.query``.

        Returns:
            NumPy arrays, leaves ``(n, ...)``.

        Raises:
            DataError: If the array has another shape or dtype, or holds a value that is not finite.
        """
        return self.query_field().check(self.asked(x) if hasattr(x, "_fields") else x, "x")

    def separate(self, x: Tree, query: Tree) -> list[Part]:
        """Return the tasks that a user's rows are of.

        Args:
            x: Rows to learn from, of one task or of several.
            query: Rows to predict.

        Returns:
            The rows of each task of the query.

        Raises:
            DataError: If rows do not say of which task they are.
            ConfigError: If the domain takes the rows of one task at a time, as by default.
        """
        raise ConfigError(
            f"predict: expected a run on a table, whose rows say of which task they are, got one on "
            f"{type(self).__name__}. Hint: use learner.adapt(x, y).predict(query)."
        )

    def statistics(self, phi: Tree, support: Tree) -> Tree:
        """Return what `forward` needs of the whole support set, computed once a task.

        Args:
            phi: Adapted parameters.
            support: The support batch.

        Returns:
            A pytree of arrays; None, the default, for nothing.
        """
        return None

    def decode(self, outputs: np.ndarray, x: Tree) -> np.ndarray:
        """Return outputs as predictions in the user's units: the outputs themselves.

        Args:
            outputs: The outputs ``(n, ...)`` of all rows.
            x: The query as the user gave it.

        Returns:
            The predictions.
        """
        return outputs

    def query_batch(self, rows: Tree) -> Tree:
        """Return encoded rows as a batch of the likelihood, with blank targets, for `Predictor.posterior`.

        Args:
            rows: What `encode_query` returned.

        Returns:
            A batch that `loss` takes.

        Raises:
            ConfigError: If the domain has no likelihood, as by default.
        """
        raise ConfigError(
            f"posterior: expected a domain whose loss is a likelihood of rows, got {type(self).__name__}. "
            "Hint: use predict."
        )

    def posterior_form(self, support: Tree) -> dict[str, Tree]:
        """Return the options of `imaml.posterior` for a task of this domain.

        Args:
            support: The support batch of the task.

        Returns:
            Keyword arguments by name; none by default.
        """
        return {}

    def interval(
        self, noise: Array | None, mean: Array, covariance: Array, level: float, x: Tree
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predictions with intervals, from the outputs' distribution under a task's posterior.

        Args:
            noise: The variance of Gaussian rows, or None of other rows.
            mean: Of the outputs, ``(n, k)``.
            covariance: Of each row's outputs, ``(n, k, k)``.
            level: The probability that a target lies in its interval.
            x: The query as the user gave it.

        Returns:
            The mean and both ends, as `decode` returns them.

        Raises:
            ConfigError: If rows are not Gaussian, as nothing more is known of them here.
        """
        if noise is None:
            raise ConfigError("predict_interval: expected Gaussian rows, got others. Hint: use predict.")
        centre = np.asarray(mean, np.float64)
        variance = np.diagonal(np.asarray(covariance, np.float64), axis1=1, axis2=2) + float(noise)
        half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance)
        decoded = [np.ravel(self.decode(part, x)) for part in (centre, centre - half, centre + half)]
        return decoded[0], decoded[1], decoded[2]

    def standalone(self, rows: int, queries: int) -> Standalone:
        """Return what a predictor that runs without this package needs.

        Args:
            rows: The rows of a support set.
            queries: The rows of a query.

        Returns:
            It.

        Raises:
            ConfigError: If the domain is not of a user's own tasks.
        """
        raise ConfigError(
            f"export: expected a run of imaml.fit, got one of {type(self).__name__}. Hint: use "
            "learner.save(path), and imaml.load(path) where this package is installed."
        )

    # Files ------------------------------------------------------------------------------------------------

    def read(self, path: str | Path, query: bool = False) -> Tree:
        """Return a file's content as `encode`, or for a query as `encode_query`, takes it.

        Args:
            path: An ``.npz`` file with the fields of a support batch; for a query an ``.npz`` file with one
                array, or an ``.npy`` file.
            query: Whether it is a query.

        Returns:
            A dictionary of arrays, or the query's array.

        Raises:
            DataError: If the file cannot be read, or has pickled objects in it.
        """
        try:
            content = np.load(path, allow_pickle=False)
            arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise DataError(f"{path}: expected an .npz or .npy file of arrays ({error}).") from error
        if not query:
            return arrays
        if len(arrays) != 1:
            raise DataError(f"{path}: expected one array, got {', '.join(arrays) or 'none'}.")
        return next(iter(arrays.values()))

    def answers(self, predictor: Predicts, support: Tree, query: Tree, uncertainty: bool = False) -> Answers:
        """Return a predictor's answers to a query that `read` returned.

        Args:
            predictor: Adapted to ``support``.
            support: What was learned from, as `read` returned it.
            query: What is asked.
            uncertainty: Whether to add intervals, or probabilities by the task's posterior.

        Returns:
            The answers.
        """
        found = np.asarray(predictor.predict(query))
        rows = [{"row": i + 1, "prediction": one.tolist()} for i, one in enumerate(found)]
        lines = ["\t".join([str(i + 1), *(f"{v}" for v in np.ravel(one))]) for i, one in enumerate(found)]
        if uncertainty:  # a ConfigError where the task has no posterior
            names = ["low", "high"] if predictor.classes is None else [str(c) for c in predictor.classes]
            if predictor.classes is None:
                each = zip(*predictor.predict_interval(query)[1:], strict=True)
            else:
                each = iter(predictor.predict_proba(query, uncertainty))
            for place, values in enumerate(each):
                told = {name: np.asarray(value).tolist() for name, value in zip(names, values, strict=True)}
                rows[place] |= told if predictor.classes is None else {"probabilities": told}
                lines[place] += "".join(f"\t{v}" for value in told.values() for v in np.ravel(value))
        return Answers(rows, lines)

    def answers_each(
        self, adapt: Callable[[Tree], Predicts], support: Tree, query: Tree, uncertainty: bool = False
    ) -> Answers:
        """Return the answers to a query that may be of several tasks.

        Args:
            adapt: Returns a predictor that is adapted to support data.
            support: What is learned from, as `read` returned it.
            query: What is asked.
            uncertainty: Whether to add intervals, or probabilities by the task's posterior.

        Returns:
            The answers; by default those of one task.
        """
        return self.answers(adapt(support), support, query, uncertainty)

    def query_rows(self, query: Tree) -> np.ndarray:
        """Return a sampled query batch as one array that `encode_query` takes.

        Args:
            query: A query batch.

        Returns:
            The array, rows first.
        """
        return self.encode_query(query)

    def write(self, task: Task, out: Path) -> tuple[int, int]:
        """Write a task as files that `read` reads: OUT/support.npz and OUT/query.npy.

        Args:
            task: A sampled task.
            out: A folder that does not exist.

        Returns:
            The numbers of support and query rows.

        Raises:
            OSError: If the files cannot be written.
        """
        rows = self.query_rows(task.query)
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / "support.npz", **task.support._asdict())
        np.save(out / "query.npy", rows)
        return len(jax.tree.leaves(task.support)[0]), len(rows)
