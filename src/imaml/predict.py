"""What was learned, in use: load an artefact, adapt it to a support set, predict."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .bayes.laplace import Laplace, posterior, summed
from .config.method import MethodRecipe
from .config.run import Config, load_config
from .core.compile import whole_program
from .core.errors import ArtefactError, ConfigError, DataError, NumericalError
from .core.recipes import from_json, to_json
from .core.solution import Solution
from .core.validation import require_number, some_of
from .core.version import __version__
from .domains.fewshot.domain import FewShot, FewShotRecipe
from .domains.fewshot.episodes import Labelled
from .domains.fewshot.images import Drawings, read_image_folder
from .domains.regression import Points, SinusoidRecipe
from .domains.tables.domain import Rows, TablesRecipe
from .domains.tables.layout import Column
from .storage.artefact import read_artefact, write_artefact
from .storage.integrity import flatten_names, unflatten_names

FORMAT = "imaml run, 1"
ROUNDING = 1e-5  # how far pixels may lie outside [0, 1]: 400 times less than a grey level of 8 bits


@dataclass(frozen=True)
class Learner:
    """Meta-parameters with the recipe that they were learned by; what `load` returns.

    theta: the meta-parameters (the moving average where one was kept). config: the run's configuration.
    source: the file that it came from.
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

    def adapt(self, x: Any, y: Any = None) -> Predictor:
        """A Predictor for a new task from its support set.

        x: images (n, 28, 28) or (n, 28, 28, 1), floats in [0, 1], 1 = ink, and y their n labels, of any
        sortable kind, with at most `ways` different ones; for a sinusoid run inputs (n,) or (n, 1) and
        targets likewise; for a run on a table a mapping from column names to values, or a file's path, and
        the targets, or None where they are one of the columns. Inductive: query images are normalised by the
        support set's statistics, and no answer depends on its neighbours in the batch. Pixels that rounding
        has put just outside [0, 1] are clipped. DataError where the support set does not fit, NumericalError
        where the inner solve ends in NaN. RuntimeWarning where the support images do not tell classes apart:
        two classes or more of blank images, or a class all of whose images are in other classes, too.
        """
        return adapt(self.theta, self.config, x, y)

    def read(self, folder: str | Path, flat: bool = False) -> Drawings:
        """A folder's image files as `adapt` and `predict` take them: (images, labels, files).

        A folder a class, or with flat=True images directly inside. Any size and polarity: they are shrunk to
        the artefact's side, and dark ink on light paper is turned round. DataError for what is no such
        folder, ConfigError for an artefact that has not learned images.
        """
        recipe = self.config.domain
        if not isinstance(recipe, FewShotRecipe):
            raise ConfigError(
                f"read: {self.source} has learned {type(recipe).__name__}, which has no images; accepted is "
                "an artefact of characters, Omniglot or mini-ImageNet."
            )
        return read_image_folder(folder, recipe.network.side, recipe.network.channels, flat)


def load(path: str | Path) -> Learner:
    """What was learned, from an artefact or a run's folder; loading executes nothing.

    ArtefactError where the file is missing, damaged, no artefact of ours, or of another model.
    """
    path = Path(path)
    file = path / "artefact.safetensors" if path.is_dir() else path
    arrays, description = read_artefact(file)
    if description.get("format") != FORMAT:
        raise ArtefactError(f"{file}: format {description.get('format')!r}; accepted is {FORMAT!r}.")
    if description.get("config") is None:
        raise ArtefactError(
            f"{file}: comes from a run that has no JSON form ({description.get('reason')}), so its network "
            "is not known here; use it in the Python session that made it, or train with an imaml.Optimiser "
            "on one of imaml's domains."
        )
    try:
        config = from_json(description["config"])
    except ConfigError as error:
        raise ArtefactError(
            f"{file}: its configuration is not understood ({error}); it was written by imaml "
            f"{description.get('version')}, this is {__version__}."
        ) from error
    if not isinstance(config, Config):
        raise ArtefactError(f"{file}: holds the configuration of a {type(config).__name__}, not of a run.")
    theta = unflatten_names(like_theta(config), arrays)
    return Learner(theta, _with_data(config, path / "config.json"), str(file))


def _with_data(config: Config, file: Path) -> Config:
    """The config with where its data lie and how they are split, which only a run's folder knows."""
    if not (hasattr(config.domain, "data") and file.is_file()):
        return config
    try:
        stored = load_config(file.read_text(), str(file)).domain
    except (OSError, ConfigError):
        return config
    known = {"data": getattr(stored, "data", None)}
    if isinstance(stored, TablesRecipe):
        known["layout"] = stored.layout
    return replace(config, domain=replace(config.domain, **known))


def save(path: str | Path, theta: Any, config: Config | str) -> None:
    """Writes an artefact: theta as safetensors, the configuration as JSON in its header.

    config: the run's, or the reason why it has none.
    """
    description: dict[str, Any] = {"format": FORMAT, "version": __version__}
    if isinstance(config, str):
        description |= {"config": None, "reason": config}
    else:
        description["config"] = to_json(config)
        domain = description["config"]["domain"]
        domain.pop("data", None)  # a path of one machine does not leave the house
        if domain.get("layout"):
            domain["layout"].pop("splits")  # nor do names of tasks, which may be people
    write_artefact(path, flatten_names(jax.device_get(theta)), description)


def like_theta(config: Config) -> Any:
    """Theta's structure, shapes and dtypes for a configuration, without data."""
    domain = _without_data(config.domain)
    method = config.method.build(domain)
    return jax.eval_shape(lambda key: method.kept(domain, key), jax.random.key(0))


def _without_data(recipe: Any) -> Any:
    """A domain with the recipe's network, loss and problem, but no data behind it."""
    if isinstance(recipe, FewShotRecipe):
        return FewShot(None, None, None, None, {}, 0, recipe)
    return recipe.without_data() if isinstance(recipe, TablesRecipe) else recipe.build()


class Interval(NamedTuple):
    """Predicted targets, and between what they lie, each (n,), in the target's units."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Predictor:
    """One task's adapted parameters, ready to answer.

    phi: the adapted parameters. classes: the labels in the order of `predict_proba`'s columns, or None for
    regression. solution: how the inner solve ended; look at `solution.status` where answers matter. network:
    what phi are the parameters of. statistics: the support set's, by which it normalises. table: of a run on
    a table its recipe, which codes rows. sure: makes the task's posterior. support: what was learned from.
    """

    phi: Any
    classes: np.ndarray | None
    solution: Solution
    network: Any
    statistics: Any = None
    table: TablesRecipe | None = None
    sure: Callable[[], Laplace] | None = None
    support: Any = None

    @functools.cached_property
    def posterior(self) -> Laplace:
        """What is known of the task's parameters, Laplace's posterior; made when first asked for.

        Of classes with the strength as a prior, of numbers where the run has learned their noise; else
        ConfigError.
        """
        if self.sure is None:
            raise ConfigError(
                "posterior: this predictor was made without one; use imaml.load(...).adapt(...)."
            )
        return self.sure()

    def predict(self, x: Any) -> np.ndarray:
        """Labels (n,) for images (n, 28, 28[, 1]); for regression the predicted targets, shaped like x.

        Of a run on a table x are rows as `adapt` takes them, and predicted is the target (n,) in its units.
        """
        if self.classes is not None:
            return self.classes[np.argmax(self.predict_proba(x), axis=1)]
        if self.table is not None:
            target = self.table.fixed.target
            return target.mean + target.scale * self._answers(None, self._coded(x))[:, 0].astype(np.float64)
        inputs = _numbers(x, "x")
        return self._answers(None, inputs.reshape(-1, 1)).reshape(inputs.shape)

    def predict_interval(self, x: Any, level: float = 0.9) -> Interval:
        """The predicted targets of rows, and between what they are with probability `level`, noise included.

        By Laplace's posterior of the task's parameters (`imaml.posterior`), so wider where the support says
        little. x: rows as `predict` takes them. ConfigError for a run that has learned no noise
        (methods evidence, moments and posterior learn it).
        """
        if self.classes is not None:
            raise ConfigError("predict_interval: this artefact predicts classes; use predict_proba.")
        require_number("predict_interval", 0, 1, open=True, level=level)
        inputs = _numbers(x, "x").reshape(-1, 1) if self.table is None else self._coded(x)
        ones = jnp.ones(inputs.shape[0], inputs.dtype)
        rows = Rows(jnp.asarray(inputs), ones[:, None], ones)
        found = self.posterior.predict(rows)
        mean, variance = (np.asarray(part, np.float64)[:, 0] for part in jax.device_get(found))
        target = Column("y") if self.table is None else self.table.fixed.target
        half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance)
        low, middle, high = (target.mean + target.scale * part for part in (mean - half, mean, mean + half))
        if not np.all(np.isfinite(high)):
            raise NumericalError("predict_interval: an interval is NaN or infinite.")
        return Interval(middle, low, high)

    def predict_proba(self, x: Any, uncertainty: bool = False) -> np.ndarray:
        """Class probabilities (n, classes), float32, rows a softmax; columns in the order of `classes`.

        uncertainty: by the task's posterior (probit approximation) rather than by its mean alone, so
        less sure where the support says little; of a run whose prior was not learned they order
        images well, and are far too low (docs/bayes.md).
        """
        if self.classes is None:
            raise ConfigError("predict_proba: this artefact predicts numbers, not classes; use predict.")
        rows = check_images(x, self.network, "x") if self.table is None else self._coded(x)
        if uncertainty:
            return self._finite(np.concatenate([self._unsure(row[None]) for row in rows]))
        return self._answers(len(self.classes), rows)

    def _unsure(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities by the posterior, (n, classes)."""
        labels, ones = jnp.zeros(len(rows), jnp.int32), jnp.ones(len(rows))
        if self.table is not None:
            return np.asarray(_probable(self.posterior, Rows(jnp.asarray(rows), labels, ones)))
        batch = Labelled(jnp.asarray(rows), labels, self.support.images)
        return np.asarray(_probable(self.posterior, batch, self.network, len(self.classes)))  # type: ignore[arg-type]

    def _coded(self, x: Any) -> np.ndarray:
        assert self.table is not None
        return self.table.fixed.code(self.table.read(x, "x")).astype(np.float32)

    def _answers(self, ways: int | None, rows: np.ndarray) -> np.ndarray:
        # Row by row through one program: in a batched product a row may round otherwise beside other rows.
        one = functools.partial(_answer, self.network, ways, self.phi, self.statistics)
        return self._finite(np.stack(jax.device_get([one(row) for row in rows])))

    @staticmethod
    def _finite(answers: np.ndarray) -> np.ndarray:
        if not np.all(np.isfinite(answers)):
            raise NumericalError(
                f"predict: {int((~np.isfinite(answers)).sum())} answers are NaN or infinite."
            )
        return answers


@functools.partial(jax.jit, static_argnums=(2, 3))
def _probable(posterior: Laplace, batch: Any, network: Any = None, ways: int | None = None) -> Array:
    """Class probabilities by a posterior, (n, ways); network: of images, whose batch has a reference."""

    def outputs(phi: Any, batch: Any) -> Array:
        _, statistics = network.forward(phi, batch.reference)
        return network.forward(phi, batch.images, statistics)[0][:, :ways]

    return posterior.probabilities(batch, outputs=None if network is None else outputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(network: Any, ways: int | None, phi: Any, statistics: Any, row: Array) -> Array:
    """The answer to one input: probabilities (ways,), or for ways=None the outputs."""
    outputs = network.forward(phi, row[None], statistics)[0][0]
    return outputs if ways is None else jax.nn.softmax(outputs[:ways])


@functools.lru_cache(maxsize=32)
def _solver(recipe: MethodRecipe, domain: Any, network: Any) -> Any:
    """The compiled (theta, support) -> (phi, Solution, statistics) of a method on a domain, both recipes."""
    method = recipe.build(_without_data(domain))

    def run(theta: Any, support: Any) -> tuple[Any, Solution, Any]:
        phi, solution = method.adapt(theta, support)
        statistics = network.forward(phi, support.images)[1] if isinstance(support, Labelled) else None
        return phi, solution, statistics

    return whole_program(run)


def adapt(theta: Any, config: Config, x: Any, y: Any) -> Predictor:
    """A Predictor for one task; see `Learner.adapt`."""
    recipe = config.domain
    table = recipe if isinstance(recipe, TablesRecipe) else None
    if isinstance(recipe, FewShotRecipe):
        network: Any = recipe.network
        images = check_images(x, network, "x")
        classes, labels = check_labels(y, images.shape[0], network.ways)
        _warn_where_alike(images, classes, labels)
        support: Any = Labelled(jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    elif isinstance(recipe, TablesRecipe):
        network, levels = recipe.network, recipe.fixed.target.levels
        classes = None if levels is None else np.array(levels)
        support = recipe.support(x, y)
    elif isinstance(recipe, SinusoidRecipe):
        network = recipe.build().network
        inputs, targets = _numbers(x, "x"), _numbers(y, "y")
        if inputs.size != targets.size or inputs.size == 0:
            raise DataError(
                f"adapt: x has {inputs.size} numbers and y {targets.size}; accepted are as many of each, and "
                "one at least."
            )
        classes = None
        support = Points(jnp.asarray(inputs.reshape(-1, 1)), jnp.asarray(targets.reshape(-1, 1)))
    else:
        raise ConfigError(f"adapt: a {type(recipe).__name__} run has no predictor; use imaml.solve.")
    phi, solution, statistics = _solver(config.method, recipe, network)(theta, support)
    if not np.isfinite(np.asarray(solution.stats.residual)):
        raise NumericalError(f"adapt: the inner solve ended in NaN or infinity. {solution.status.advice}")
    sure = functools.partial(_knower(config.method, recipe), phi, theta, support)
    return Predictor(phi, classes, solution, network, statistics, table, sure, support)


@functools.lru_cache(maxsize=32)
def _knower(recipe: MethodRecipe, domain: Any) -> Callable[[Any, Any, Any], Laplace]:
    """The compiled (phi, theta, support) -> posterior of the problem that phi solves, a sum over rows."""
    method = recipe.build(_without_data(domain))

    def run(phi: Any, theta: Any, support: Any) -> Laplace:
        problem, prior = summed((method.new_task or method).problem, theta, support)
        if not isinstance(support, Labelled):
            return posterior(problem, phi, prior, support)
        rank = support.labels.shape[0] * (domain.network.ways - 1)  # at most that of the curvature
        return posterior(problem, phi, prior, support, form="low-rank", rank=rank)

    return whole_program(run)


def check_images(x: Any, network: Any, name: str) -> np.ndarray:
    """Images as float32 (n, side, side, channels) in [0, 1].

    Args:
        x: The images, floats or booleans. Values outside [0, 1] by rounding are clipped: by ``ROUNDING``, or
            four units in the last place of a coarser dtype.
        network: What they are for, with a side and channels.
        name: What messages call them.

    Raises:
        DataError: If the shape or dtype is another, or a value is not finite or truly outside [0, 1].
    """
    side, channels = network.side, network.channels
    try:
        images = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{name}: the images have different shapes; accepted is one array.") from error
    if not (np.issubdtype(images.dtype, np.floating) or images.dtype == bool):
        raise DataError(
            f"{name}: dtype {images.dtype}; accepted are floats in [0, 1], 1 = ink (divide 8-bit images by "
            "255, and turn dark ink on light paper round: 1 - x / 255)."
        )
    accepted = f"(n, {side}, {side}, {channels})" + (f" or (n, {side}, {side})" if channels == 1 else "")
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.ndim != 4 or images.shape[1:] != (side, side, channels) or images.shape[0] == 0:
        raise DataError(f"{name}: shape {np.shape(x)}; accepted is {accepted} with n of at least 1.")
    # Checked before the cast to float32, in which a value of 1e300 would be infinite.
    if not np.all(np.isfinite(images)):
        raise DataError(
            f"{name}: {int((~np.isfinite(images)).sum())} pixels are NaN or infinite; accepted are floats in "
            "[0, 1]: leave those images out, or mend them."
        )
    if images.dtype != bool:
        rounding = max(ROUNDING, 4 * float(np.finfo(images.dtype).eps))
        low, high = images.min(), images.max()
        if low < -rounding or high > 1 + rounding:
            # str of a NumPy number has as many digits as tell it from its neighbours, so never "1" here.
            raise DataError(
                f"{name}: expected floats in [0, 1], 1 = ink (give or take {rounding:.1g} of rounding), got "
                f"values from {low!s} to {high!s}. Hint: divide 8-bit images by 255; clip what a resampling "
                "filter has overshot."
            )
    return np.clip(images.astype(np.float32), 0, 1)


def _warn_where_alike(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> None:
    """Warns where support images do not tell classes apart, as a solve of them ends well all the same.

    Images are compared as 8 bits, so that rounding makes no difference. A blank image leaves nothing to
    normalise by (a variance of 0), and any query image is then answered with a probability near 1.
    """
    coded = np.rint(255 * images).astype(np.uint8)
    spread = coded.max((1, 2)).astype(int) - coded.min((1, 2))
    blank = spread.max(-1) <= 1  # one grey level: a blank page after averaging
    of: dict[bytes, set[int]] = {}
    for image, label in zip(coded, labels.tolist(), strict=True):
        of.setdefault(image.tobytes(), set()).add(label)
    shared = np.array([len(of[image.tobytes()]) > 1 for image in coded])
    numbers = range(len(classes))
    empty = [str(classes[k]) for k in numbers if blank[labels == k].all()]
    twins = [
        str(classes[k])
        for k in numbers
        if (shared | blank)[labels == k].all() and not blank[labels == k].all()
    ]
    found = []
    if len(empty) > 1:
        found.append(f"{len(empty)} classes of {len(classes)} have only blank images ({some_of(empty)})")
    if twins:
        found.append(
            f"{len(twins)} of {len(classes)} classes have only images that other classes have, too "
            f"({some_of(twins)})"
        )
    if found:
        warnings.warn(
            f"adapt: expected support images that tell the classes apart, got {'; '.join(found)}. Answers "
            "for these classes mean nothing, however high their probability. Hint: look at the images, and "
            "check that each has the label of its own class.",
            RuntimeWarning,
            stacklevel=4,  # the caller of Learner.adapt
        )


def check_labels(y: Any, count: int, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels, sorted, and each row's number among them; DataError where they do not fit."""
    try:
        labels = np.asarray(y)
        classes, numbers = np.unique(labels, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            "y: labels cannot be compared; accepted are numbers, or texts, one an image."
        ) from error
    if labels.shape != (count,):
        raise DataError(f"y: shape {labels.shape}; accepted is one label for each of {count} support images.")
    if np.issubdtype(labels.dtype, np.floating) and not np.all(np.isfinite(labels)):
        raise DataError("y: a label is NaN or infinite; accepted are whole numbers, or texts.")
    if len(classes) < 2:
        raise DataError(f"labels: all are {classes[0]!s}; accepted are 2 to {ways} different ones.")
    if len(classes) > ways:
        raise DataError(
            f"labels: {len(classes)} different ones; this artefact was trained to tell {ways} classes apart "
            f"and accepts 2 to {ways}. Train one with --domain.ways={len(classes)}."
        )
    return classes, numbers


def _numbers(values: Any, name: str) -> np.ndarray:
    """Values as float32 (n,) or (n, 1); DataError for anything else."""
    try:
        numbers = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: accepted are numbers, shape (n,) or (n, 1).") from error
    if numbers.ndim not in (1, 2) or numbers.shape[1:] not in ((), (1,)) or numbers.size == 0:
        raise DataError(f"{name}: shape {numbers.shape}; accepted is (n,) or (n, 1), n of at least 1.")
    if not np.all(np.isfinite(numbers)):
        raise DataError(f"{name}: a value is NaN or infinite; accepted are finite numbers.")
    return numbers
