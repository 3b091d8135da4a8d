"""What was learned, in use: load an artefact, adapt it to a support set, predict."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .checkpoint import flatten_names, read_artefact, unflatten_names, write_artefact
from .config import Config, from_json, to_json
from .domains.fewshot import FewShotRecipe, Labelled
from .domains.regression import Points, SinusoidRecipe
from .errors import ArtefactError, ConfigError, DataError
from .solution import Solution

FORMAT = "imaml run, 1"


@dataclass(frozen=True)
class Learner:
    """Meta-parameters with the recipe that they were learned by; what `load` returns.

    theta: the meta-parameters (the moving average where one was kept). config: the run's configuration.
    """

    theta: Any
    config: Config
    source: str = "memory"

    @functools.cached_property
    def domain(self) -> Any:
        """The domain that it was trained on, built (its data read) when first asked for."""
        return self.config.domain.build()

    @functools.cached_property
    def method(self) -> Any:
        """The method, with the problem and the inner solver that adapting uses."""
        return self.config.method.build(_without_data(self.config.domain))

    def adapt(self, x: Any, y: Any) -> Predictor:
        """A Predictor for a new task from its support set.

        x: images (n, 28, 28) or (n, 28, 28, 1) in [0, 1], 1 = ink, and y their n labels, of any sortable kind,
        with at most `ways` different ones; for a sinusoid run inputs (n,) or (n, 1) and targets likewise.
        Inductive: query images are normalised by the support set's statistics, and no answer depends on its
        neighbours in the batch. DataError where the support set does not fit.
        """
        return adapt(self.theta, self.config, self.method, x, y)


def load(path: str | Path) -> Learner:
    """What was learned, from an artefact or a run's folder; loading executes nothing.

    ArtefactError where the file is missing, damaged, no artefact of ours, or of another model.
    """
    path = Path(path)
    file = path / "artefact.safetensors" if path.is_dir() else path
    arrays, description = read_artefact(file)
    if description.get("format") != FORMAT or description.get("config") is None:
        raise ArtefactError(
            f"{file}: format {description.get('format')!r}; accepted is {FORMAT!r} with a configuration. A run made "
            "from Python objects without a JSON form can be used in that Python session only."
        )
    try:
        config = from_json(description["config"])
    except ConfigError as error:
        raise ArtefactError(f"{file}: its configuration is not understood: {error}") from error
    if not isinstance(config, Config):
        raise ArtefactError(f"{file}: holds the configuration of a {type(config).__name__}, not of a run.")
    return Learner(unflatten_names(like_theta(config), arrays), config, str(file))


def save(path: str | Path, theta: Any, config: Config | None) -> None:
    """Writes an artefact: theta as safetensors, the configuration as JSON in its header."""
    described = None if config is None else to_json(config)
    if described is not None and isinstance(described, dict):
        described["domain"].pop("data", None)  # a path of one machine does not leave the house
    write_artefact(path, flatten_names(jax.device_get(theta)), {"format": FORMAT, "config": described})


def like_theta(config: Config) -> Any:
    """Theta's structure, shapes and dtypes for a configuration, without data."""
    domain = _without_data(config.domain)
    problem = config.method.build(domain).problem
    return jax.eval_shape(lambda key: problem.parameters(domain.init(key)), jax.random.key(0))


def _without_data(recipe: Any) -> Any:
    """A domain with the recipe's network, loss and problem, but no data behind it."""
    if isinstance(recipe, FewShotRecipe):
        from .domains.fewshot import FewShot

        return FewShot(None, None, None, {}, 0, recipe)
    return recipe.build()


@dataclass(frozen=True)
class Predictor:
    """One task's adapted parameters, ready to answer.

    phi: the adapted parameters. classes: the labels in the order of `predict_proba`'s columns, or None for
    regression. solution: how the inner solve ended; look at `solution.status` where answers matter.
    """

    phi: Any
    classes: np.ndarray | None
    solution: Solution
    recipe: Any
    statistics: Any = None

    def predict(self, x: Any) -> np.ndarray:
        """Labels (n,) for images (n, 28, 28[, 1]); for regression the predicted targets, shaped like x."""
        if self.classes is None:
            inputs = _numbers(x, "x")
            outputs = self.recipe.build().network.forward(self.phi, jnp.asarray(inputs.reshape(-1, 1)))[0]
            return np.asarray(outputs).reshape(inputs.shape)
        return self.classes[np.argmax(self.predict_proba(x), axis=1)]

    def predict_proba(self, x: Any) -> np.ndarray:
        """Class probabilities (n, classes), float32, each row a softmax; columns in the order of `classes`."""
        if self.classes is None:
            raise ConfigError("predict_proba: this artefact predicts numbers, not classes; use predict.")
        images = check_images(x, self.recipe, "x")
        count = images.shape[0]
        padded = np.zeros((1 << max(count - 1, 0).bit_length(), *images.shape[1:]), np.float32)
        padded[:count] = images
        answers = _probabilities(self.recipe, len(self.classes), self.phi, self.statistics, jnp.asarray(padded))
        return np.asarray(answers)[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _probabilities(recipe: FewShotRecipe, ways: int, phi: Any, statistics: Any, images: Array) -> Array:
    """Probabilities image by image: a batched product could round a row differently beside other rows."""

    def one(image: Array) -> Array:
        logits, _ = recipe.network.forward(phi, image[None], statistics)
        return jax.nn.softmax(logits[0, :ways])

    return lax.map(one, images)


@functools.lru_cache(maxsize=32)
def _solver(method: Any, config: Config) -> Any:
    """The compiled (theta, support) -> (phi, Solution, statistics) of a method."""
    problem = method.problem

    def run(theta: Any, support: Any) -> tuple[Any, Solution, Any]:
        solution = method.inner(problem, theta, support)
        phi = problem.full(solution.value, theta)
        statistics = None
        if isinstance(support, Labelled):
            _, statistics = config.domain.network.forward(phi, support.images)  # type: ignore[union-attr]
        return phi, solution, statistics

    return jax.jit(run)


def adapt(theta: Any, config: Config, method: Any, x: Any, y: Any) -> Predictor:
    """A Predictor for one task; see `Learner.adapt`."""
    recipe = config.domain
    if isinstance(recipe, FewShotRecipe):
        images = check_images(x, recipe, "x")
        classes, labels = check_labels(y, images.shape[0], recipe.ways)
        support: Any = Labelled(jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    elif isinstance(recipe, SinusoidRecipe):
        inputs, targets = _numbers(x, "x"), _numbers(y, "y")
        if inputs.size != targets.size or inputs.size == 0:
            raise DataError(f"adapt: x has {inputs.size} numbers and y {targets.size}; accepted are as many of each.")
        classes = None
        support = Points(jnp.asarray(inputs.reshape(-1, 1)), jnp.asarray(targets.reshape(-1, 1)))
    else:
        raise ConfigError(f"adapt: a {type(recipe).__name__} run has no predictor.")
    phi, solution, statistics = _solver(method, config)(theta, support)
    if not bool(solution.stats.residual < np.inf):
        raise DataError(f"adapt: the inner solve ended in NaN or infinity. {solution.status.advice}")
    return Predictor(phi, classes, solution, recipe, statistics)


def check_images(x: Any, recipe: FewShotRecipe, name: str) -> np.ndarray:
    """Images as float32 (n, side, side, channels); DataError for other shapes, NaN, or values outside [0, 1]."""
    side, channels = recipe.network.side, recipe.network.channels
    try:
        images = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{name}: the images have different shapes; accepted is one array.") from error
    accepted = f"(n, {side}, {side}, {channels})" + (f" or (n, {side}, {side})" if channels == 1 else "")
    if not (np.issubdtype(images.dtype, np.floating) or images.dtype == bool):
        raise DataError(
            f"{name}: dtype {images.dtype}; accepted are floats in [0, 1], 1 = ink (divide 8-bit images by 255, and "
            "turn dark ink on light paper round: 1 - x / 255)."
        )
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.ndim != 4 or images.shape[1:] != (side, side, channels) or images.shape[0] == 0:
        raise DataError(f"{name}: shape {np.shape(x)}; accepted is {accepted} with n of at least 1.")
    images = images.astype(np.float32)
    if not np.all(np.isfinite(images)):
        raise DataError(f"{name}: {int((~np.isfinite(images)).sum())} pixels are NaN or infinite.")
    if images.min() < 0 or images.max() > 1:
        raise DataError(
            f"{name}: values from {images.min():g} to {images.max():g}; accepted are floats in [0, 1], 1 = ink "
            "(divide 8-bit images by 255)."
        )
    return images


def check_labels(y: Any, count: int, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels, sorted, and each row's number among them; DataError where they do not fit."""
    labels = np.asarray(y)
    if labels.shape != (count,):
        raise DataError(f"y: shape {labels.shape}; accepted is one label for each of the {count} support images.")
    if np.issubdtype(labels.dtype, np.floating) and not np.all(np.isfinite(labels)):
        raise DataError("y: a label is NaN or infinite.")
    classes, numbers = np.unique(labels, return_inverse=True)
    if not 2 <= len(classes) <= ways:
        raise DataError(
            f"y: {len(classes)} different labels; this artefact was trained to tell {ways} classes apart and accepts "
            f"2 to {ways}. Train one with --domain.ways={max(len(classes), 2)}."
        )
    return classes, numbers


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: accepted are numbers, shape (n,) or (n, 1).") from error
    if numbers.ndim not in (1, 2) or (numbers.ndim == 2 and numbers.shape[1] != 1):
        raise DataError(f"{name}: shape {numbers.shape}; accepted is (n,) or (n, 1).")
    if not np.all(np.isfinite(numbers)):
        raise DataError(f"{name}: a value is NaN or infinite.")
    return numbers
