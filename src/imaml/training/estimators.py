"""scikit-learn's interface to `fit`: estimators that learn from many tasks, and adapt to a new one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import ClassVar, Literal, Self

import numpy as np
from jax import Array
from numpy.typing import ArrayLike
from optax import GradientTransformation

from ..config.method import MethodRecipe
from ..config.optimiser import Optimiser
from ..core.errors import ConfigError, DataError
from ..core.tree import Tree
from ..core.validation import not_one_of
from ..domains.tasks.collection import Tasks
from ..domains.tasks.domain import TasksRecipe, normalises
from ..domains.tasks.losses import RowLoss
from ..predict import Interval, Predictor
from .fit import fit

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import Tags, check_consistent_length, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ConfigError(
        "MetaRegressor, MetaClassifier: expected scikit-learn 1.6 or newer, got none. Hint: pip install "
        "'imaml[sklearn]'."
    ) from error

DEALT = 10  # rows of a task, where rows have no groups
HELD_OUT = 5  # tasks from which some are held out for validation


class _MetaEstimator(BaseEstimator):
    """What both estimators share."""

    _loss: ClassVar[str] = "squared"
    _targets: ClassVar[dict[str, bool]] = {"multi_output": True, "y_numeric": True}  # how they are checked

    def __init__(
        self,
        model: object = None,
        loss: str | RowLoss | Callable[[Array, Array], Array] | None = None,
        *,
        shots: float | None = None,
        queries: int | None = None,
        order: Literal["random", "first"] | None = None,
        validation: float = 0.2,
        standardise: bool = True,
        method: MethodRecipe | None = None,
        strength: float | None = None,
        adapted: Tree = None,
        optimiser: Optimiser | GradientTransformation | None = None,
        pretrain: int | None = None,
        tasks_per_step: int | None = None,
        steps: int | None = 1000,
        minutes: float | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        """Store the hyperparameters; see the class."""
        self.model = model
        self.loss = loss
        self.shots = shots
        self.queries = queries
        self.order = order
        self.validation = validation
        self.standardise = standardise
        self.method = method
        self.strength = strength
        self.adapted = adapted
        self.optimiser = optimiser
        self.pretrain = pretrain
        self.tasks_per_step = tasks_per_step
        self.steps = steps
        self.minutes = minutes
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Learn from many tasks.

        Args:
            X: Inputs ``(rows, ...)``, an array or a data frame of numbers.
            y: Targets ``(rows,)``.
            groups: The task of each row, ``(rows,)``. None deals the rows at random into tasks, which then
                teach nothing about how tasks differ.

        Returns:
            This estimator.

        Raises:
            DataError: If the rows do not fit the loss, or no group has two rows.
            ConfigError: If a hyperparameter is not valid.

        Warns:
            RuntimeWarning: If ``groups`` is None, or groups are excluded, as they have one row.
        """
        X, y = self._checked(X, y, reset=True)
        random = check_random_state(self.random_state)
        if groups is None:
            warnings.warn(
                f"{type(self).__name__}.fit: groups: expected the task of each row, got None, so rows are "
                "assigned to random tasks. Hint: fit(X, y, groups=groups); in cross-validation "
                "params={'groups': groups}.",
                RuntimeWarning,
                stacklevel=2,
            )
            groups = random.permutation(np.arange(len(X)) % max(1, len(X) // DEALT))
        check_consistent_length(X, groups)
        tasks = Tasks.from_arrays(X, self._coded(y, reset=True), groups)
        run = fit(
            tasks,
            self.model,
            self.loss or self._loss,
            shots=self.shots,
            queries=self.queries,
            order=self.order,  # type: ignore[arg-type]
            validation=self.validation if (tasks.counts > 1).sum() >= HELD_OUT else 0.0,
            test=0.0,
            standardise=self.standardise,
            method=self.method,
            strength=self.strength,
            adapt=self.adapted,
            optimiser=self.optimiser,
            pretrain=self.pretrain,
            tasks_per_step=self.tasks_per_step,
            steps=self.steps,
            minutes=self.minutes,
            seed=int(random.randint(2**31 - 1)),
            progress=None if self.verbose else False,
        )
        self.learner_ = run.learner
        self.choices_ = run.choices
        self.n_iter_ = run.step
        # A model that normalises by support rows says nothing of a task without any.
        blank = not normalises(self._recipe.model)
        self.predictor_: Predictor | None = self.learner_.adapt() if blank else None
        return self

    def adapt(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Adapt to a new task.

        Args:
            X: Inputs of a few rows of the task, as `fit` takes them.
            y: Their targets.

        Returns:
            A fitted estimator of the same class, whose predictions are those for the task. This one stays as
            it is.

        Raises:
            DataError: If the rows do not fit.
            NumericalError: If the inner solve ends in NaN or infinity.
        """
        check_is_fitted(self)
        X, y = self._checked(X, y, reset=False)
        adapted = copy.copy(self)
        adapted.predictor_ = self.learner_.adapt(X, self._coded(y))
        return adapted

    @property
    def _recipe(self) -> TasksRecipe:
        return self.learner_.config.domain  # type: ignore[return-value]

    def _coded(self, y: np.ndarray, reset: bool = False) -> np.ndarray:
        """Targets as the run takes them."""
        return y

    def _answer(self, predictor: Predictor, X: np.ndarray) -> np.ndarray:
        """Predicted targets."""
        return predictor.predict(X)

    def _checked(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows and targets as arrays; the features are those of `fit`."""
        options = {"allow_nd": True, "ensure_min_samples": 2 if reset else 1, **self._targets}
        given: Tree = (X, y)
        return validate_data(self, *given, reset=reset, **options)  # type: ignore[return-value]

    def _asked(self, X: ArrayLike) -> tuple[Predictor, np.ndarray]:
        """The predictor, and rows as it takes them."""
        check_is_fitted(self)
        rows: Tree = validate_data(self, X, reset=False, allow_nd=True)  # type: ignore[arg-type]
        return self.predictor_ or self.learner_.adapt(), rows

    def _scored(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
        """Targets, and predictions for them: those of each task's rows that were not adapted to."""
        if groups is None:
            return np.asarray(y), self.predict(X)  # type: ignore[attr-defined]
        X, y = self._checked(X, y, reset=False)
        codes, recipe = self._coded(y), self._recipe
        random, truths, found = check_random_state(self.random_state), [], []
        check_consistent_length(X, groups)
        for label in np.unique(np.asarray(groups)):
            rows = np.flatnonzero(np.asarray(groups) == label)
            if recipe.order == "random":
                rows = random.permutation(rows)
            shots = max(1, round(recipe.share * len(rows))) if recipe.share else recipe.support
            few, rest = np.split(rows, [min(shots, len(rows) - 1)])
            predictor = self.learner_.adapt(X[few], codes[few]) if few.size else self.predictor_
            if predictor is not None:
                truths.append(y[rest])
                found.append(self._answer(predictor, X[rest]))
        return np.concatenate(truths), np.concatenate(found)


class MetaRegressor(RegressorMixin, _MetaEstimator):
    """Learns from many tasks how to predict numbers, as an estimator of scikit-learn.

    `fit` learns a starting point from rows whose ``groups`` say which task they belong to. `adapt` then
    learns a new task from few rows. Before `adapt`, `predict` returns the prediction for the population of
    all tasks. docs/own_tasks.md shows cross-validation by groups.

    Args:
        model: The network; see `imaml.fit`.
        loss: The loss of a row: "squared" (the default), "poisson", "negative_binomial", or a function.
        shots: Rows of a task to learn from: a whole number, or a share of its rows. By default half of them.
        queries: The most rows of a task to be predicted in a step.
        order: Whether to learn from "random" rows of a task (the default) or from its "first" rows.
        validation: The share of groups that are held out, to choose the strength and to calibrate intervals.
        standardise: Whether numbers are coded by their mean and standard deviation.
        method: How to learn, a recipe such as ``imaml.config.Method("maml", ...)``; by default implicit MAML.
        strength: The regularisation strength; by default the best of a few short trials.
        adapted: Which parameters a task adapts; `imaml.fit` calls it ``adapt``.
        optimiser: The outer optimiser, `imaml.Optimiser` or an Optax transform.
        pretrain: The most steps of pretraining on all rows, without adaptation.
        tasks_per_step: Tasks in each step.
        steps: The most steps.
        minutes: The most minutes. Results then depend on the speed of the machine.
        random_state: The seed, or None for another one at each fit.
        verbose: Whether to show the run on stderr.

    Attributes:
        learner_: The trained learner; `learner_.save(path)` writes a file that `imaml.load` reads.
        predictor_: The task that is predicted, `imaml.Predictor`; None for the population of all tasks if the
            model normalises by support rows.
        choices_: The choices that were made, and why.
        n_iter_: The number of steps.
        n_features_in_: The number of features.
        feature_names_in_: Their names, if ``X`` was a data frame.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> groups = np.repeat(np.arange(30), 8)
        >>> X = rng.normal(size=(240, 1))
        >>> y = rng.normal(size=30)[groups] + 2 * X[:, 0]
        >>> learner = MetaRegressor("linear", shots=4, strength=0.1, steps=20).fit(X, y, groups=groups)
        >>> learner.adapt([[0.0], [1.0]], [5.0, 7.0]).predict([[2.0]]).shape
        (1,)
    """

    def __sklearn_tags__(self) -> Tags:
        """Return the tags: targets may have several columns."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict for the adapted task; before `adapt`, for the population of all tasks.

        Args:
            X: Inputs ``(rows, ...)``.

        Returns:
            The predictions, ``(rows,)`` or ``(rows, columns)``.
        """
        return self._answer(*self._asked(X))

    def predict_interval(self, X: ArrayLike, level: float = 0.9) -> Interval:
        """Predict with intervals; see `imaml.Predictor.predict_interval`.

        Args:
            X: Inputs ``(rows, ...)``.
            level: The probability that a target lies in its interval.

        Returns:
            The mean and both ends for each row.
        """
        predictor, X = self._asked(X)
        return predictor.predict_interval(X, level)

    def score(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> float:
        """Return the coefficient of determination, R^2.

        Args:
            X: Inputs ``(rows, ...)``.
            y: Targets.
            groups: None to score `predict`. With the task of each row, the score adapts to each task, with as
                many rows as `fit`, and scores the predictions for the other rows.

        Returns:
            The score.
        """
        return float(r2_score(*self._scored(X, y, groups)))


class MetaClassifier(ClassifierMixin, _MetaEstimator):
    """Learns from many tasks how to classify, as an estimator of scikit-learn; see `MetaRegressor`.

    All tasks share their classes. For tasks with new classes use `imaml.fit` on episodes.

    Args:
        model: The network; see `imaml.fit`.
        loss: The loss of a row: "cross_entropy" (the default), "binary" or "ordinal".
        shots: See `MetaRegressor`, as for all that follow.
        queries: The most rows of a task to be predicted in a step.
        order: Whether to learn from "random" or the "first" rows.
        validation: The share of groups that are held out.
        standardise: Whether inputs are coded by their mean and standard deviation.
        method: How to learn.
        strength: The regularisation strength.
        adapted: Which parameters a task adapts.
        optimiser: The outer optimiser.
        pretrain: The most steps on all rows without adaptation.
        tasks_per_step: Tasks in each step.
        steps: The most steps.
        minutes: The most minutes.
        random_state: The seed, or None.
        verbose: Whether to show the run on stderr.

    Attributes:
        classes_: The classes.
        learner_: What was learned; its classes are the numbers of those in `classes_`.
        predictor_: The task that is predicted; see `MetaRegressor`, also for the other attributes.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> groups = np.repeat(np.arange(30), 8)
        >>> X = rng.normal(size=(240, 1))
        >>> y = np.where(X[:, 0] > rng.normal(size=30)[groups], "high", "low")
        >>> learner = MetaClassifier("linear", shots=4, strength=0.1, steps=20).fit(X, y, groups=groups)
        >>> learner.adapt([[0.0], [1.0]], ["low", "high"]).predict_proba([[2.0]]).shape
        (1, 2)
    """

    _loss = "cross_entropy"
    _targets: ClassVar[dict[str, bool]] = {}

    def _coded(self, y: np.ndarray, reset: bool = False) -> np.ndarray:
        """Classes by their numbers; DataError if one is none of those of `fit`."""
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y)
            # `fit` sees their numbers, whose order would be that of the alphabet.
            ordered = getattr(self.loss, "kind", self.loss) == "ordinal"
            if ordered and self.classes_.dtype.kind not in "iufb":
                raise DataError(
                    "y: expected numbers with loss='ordinal', as they say the order of classes, got "
                    f"{self.classes_[0]!r}."
                )
        strange = np.setdiff1d(y, self.classes_)
        if strange.size:
            raise DataError(not_one_of("y: class", strange[0], self.classes_.tolist()))
        return np.searchsorted(self.classes_, y)

    def _answer(self, predictor: Predictor, X: np.ndarray) -> np.ndarray:
        """Predicted classes."""
        return self.classes_[predictor.predict(X)]

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict classes for the adapted task; before `adapt`, for the population of all tasks.

        Args:
            X: Inputs ``(rows, ...)``.

        Returns:
            The classes ``(rows,)``.
        """
        return self._answer(*self._asked(X))

    def predict_proba(self, X: ArrayLike, uncertainty: bool = False) -> np.ndarray:
        """Predict class probabilities; see `imaml.Predictor.predict_proba`.

        Args:
            X: Inputs ``(rows, ...)``.
            uncertainty: Whether to use the task's posterior.

        Returns:
            ``(rows, classes)``, columns in the order of `classes_`.
        """
        predictor, X = self._asked(X)
        return predictor.predict_proba(X, uncertainty)

    def score(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> float:
        """Return the accuracy.

        Args:
            X: Inputs ``(rows, ...)``.
            y: Classes.
            groups: See `MetaRegressor.score`.

        Returns:
            The score.
        """
        return float(accuracy_score(*self._scored(X, y, groups)))
