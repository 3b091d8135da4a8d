"""Use of a trained model: load an artefact, adapt it to a support set, predict."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import ArrayLike

from .bayes.laplace import Laplace, posterior, summed
from .config.method import MethodRecipe
from .config.run import Config, load_config
from .core.compile import whole_program
from .core.errors import ArtefactError, ConfigError, NumericalError
from .core.recipes import from_json, text_of, to_json
from .core.solution import Solution
from .core.tree import Tree
from .core.validation import require_number
from .core.version import __version__
from .domains.base import DomainBase
from .domains.recipes import DomainRecipe
from .meta.gradient import MetaGradient
from .storage.artefact import read_artefact, write_artefact
from .storage.integrity import flatten_names, unflatten_names
from .storage.standalone import write_standalone
from .storage.traces import KeptProgram, prepare

FORMAT = "imaml run, 1"
AT_ONCE = 16  # query rows of a call of a compiled program


class Pickled:
    """The base of frozen dataclasses that are pickled by their fields, without what was made of them."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Learner(Pickled):
    """Meta-parameters with the configuration that they were learned with; what `load` returns.

    Attributes:
        theta: The meta-parameters (the moving average if one was kept).
        config: The run's configuration.
        source: The file that they came from.
        untrained: Whether they are still the random initialisation, before the first step.
    """

    theta: Tree
    config: Config
    source: str = "memory"
    untrained: bool = False

    def __repr__(self) -> str:
        """Return one line: the method, the domain, and where the parameters are from."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.theta))
        names = self.config.method.name, type(self.config.domain).__name__
        return f"Learner: {names[0]} on {names[1]}, {size:,} meta-parameters from {self.source}"

    @functools.cached_property
    def domain(self) -> DomainBase:
        """The domain that it was trained on. Its data are read at the first access."""
        return self.config.domain.build()

    @functools.cached_property
    def method(self) -> MetaGradient:
        """The method, with the problem and the inner solver that adapting uses."""
        return self.config.method.build(self.config.domain.without_data())

    def adapt(self, x: Tree = None, y: ArrayLike | None = None) -> Predictor:
        """Adapt to a new task.

        The form of the support data depends on the domain; see its `encode`:

        - few-shot images: images ``(n, 28, 28)`` or ``(n, 28, 28, 1)``, floats in [0, 1], 1 = ink, and ``n``
          labels of any sortable kind, at most `ways` different ones. Query images are normalised by the
          support set's statistics, so that no prediction depends on its neighbours in the batch. Pixels that
          rounding has put just outside [0, 1] are clipped.
        - sinusoids: inputs ``(n,)`` or ``(n, 1)``, and targets of the same shape.
        - tables: a file's path, a data frame, a mapping from column names to values, or a matrix with a
          column for each feature, and the targets, or None if they are one of the columns; nothing for a task
          without rows, whose predictions are those for the population of all tasks.
        - tasks of `imaml.fit`: inputs and targets like those of the run; nothing for a task without rows,
          whose predictions are those for the population of all tasks.
        - all others: the arrays of a support batch by name; the first one, or two, may be given alone.

        Every domain takes a sampled ``task.support``.

        Args:
            x: The support data.
            y: Labels or targets, if they are not part of ``x``.

        Returns:
            A predictor for the task.

        Raises:
            DataError: If the support data do not fit.
            NumericalError: If the inner solve ends in NaN or infinity.

        Warns:
            RuntimeWarning: If support images do not distinguish the classes: two or more classes of blank
                images, or a class whose images are all in other classes, too.
        """
        return adapt(self.theta, self.config, x, y)

    def predict(self, support: Tree, query: Tree) -> np.ndarray:
        """Predict for several new tasks of a table or a data frame, each from its own rows.

        Args:
            support: Rows of the tasks, with the columns of task and target: a file, or a data frame; or None.
                A task of the query without rows gets the prediction for the population of all tasks.
            query: The rows to predict, with the column of the task.

        Returns:
            What `Predictor.predict` returns, in the order of the query's rows.

        Raises:
            ConfigError: If rows of the run do not name their task, as those of arrays.
            DataError: If rows do not fit.
        """
        parts = self.config.domain.without_data().separate(support, query)
        found = np.concatenate([self.adapt(part.support).predict(part.query) for part in parts])
        return found[np.argsort(np.concatenate([part.rows for part in parts]))]

    def save(self, path: str | Path) -> None:
        """Write an artefact, one file that `imaml.load` reads.

        Args:
            path: The file.

        Raises:
            ArtefactError: If it cannot be written.
        """
        save(path, self.theta, self.config, self.untrained)

    def export(
        self,
        path: str | Path,
        *,
        rows: Sequence[int] = (4, 8, 16, 32, 64, 128),
        platforms: Sequence[str] = (),
    ) -> None:
        """Write the learner for a process that has JAX, NumPy and flatbuffers, but not this package.

        Beside the file it writes `imaml_standalone.py`: ``load(path).adapt(x, y).predict(x)``. The file has a
        StableHLO program for each padded size of support sets, so nothing is traced again.

        Args:
            path: The file.
            rows: The numbers of support rows. For a model with batch normalisation, these are the only
                possible numbers, because its support sets are not padded.
            platforms: Where it will run, such as ``("cpu", "cuda", "tpu")``; by default on this platform.

        Raises:
            ConfigError: If it is not a run of `imaml.fit`, or its loss is a density of your own.
            ArtefactError: If the file cannot be written.
        """
        _export(Path(path), self, rows, platforms)

    def read(self, path: str | Path, flat: bool = False) -> Tree:
        """Read files as `adapt` and `predict` take them.

        Args:
            path: For images a folder with a folder a class; images of any size and polarity are shrunk to
                the artefact's side. For tables a file. For other domains an ``.npz`` file of a support
                batch's arrays.
            flat: Whether it is a query: a folder of images directly inside, or a file of one array.

        Returns:
            For images `Drawings`, that is, images, labels and files; for tables a `Table`; else arrays.

        Raises:
            DataError: If the files cannot be read.
        """
        return self.config.domain.without_data().read(path, flat)


def load(path: str | Path, *, model: object = None, loss: object = None) -> Learner:
    """Load a trained model. Loading executes no code from the file.

    Args:
        path: An artefact, or a run's directory.
        model: The model, as `imaml.fit` takes it, if the run was fitted with a user's own model, which the
            file does not contain.
        loss: The loss, if it is a function of the user's own.

    Returns:
        The learner.

    Raises:
        ArtefactError: If the file is missing or damaged, is not an artefact of imaml, or is for another
            model.
        ConfigError: If ``model`` is missing, or another one than the run was fitted with.

    Warns:
        RuntimeWarning: If the run took no step, so that the parameters are untrained.

    Example:
        >>> import imaml
        >>> learner = imaml.load("artefacts/characters-5w1s.safetensors")  # doctest: +SKIP
        >>> learner.adapt(images, labels).predict(others)  # doctest: +SKIP
    """
    path = Path(path)
    file = path / "artefact.safetensors" if path.is_dir() else path
    arrays, description = read_artefact(file)
    if description.get("format") != FORMAT:
        raise ArtefactError(f"{file}: expected format {FORMAT!r}, got {description.get('format')!r}.")
    if description.get("config") is None:
        raise ArtefactError(
            f"{file}: expected a run with a JSON form, got none ({description.get('reason')}). Hint: use it "
            "in the Python session that made it, or train with an imaml.Optimiser on one of imaml's domains."
        )
    try:
        config = from_json(description["config"])
    except ConfigError as error:
        raise ArtefactError(
            f"{file}: expected a configuration of imaml {__version__}, got one of imaml "
            f"{description.get('version')} ({error})."
        ) from error
    if not isinstance(config, Config):
        raise ArtefactError(f"{file}: expected the configuration of a run, got a {type(config).__name__}.")
    config = replace(config, domain=config.domain.with_objects(model, loss))
    theta = unflatten_names(like_theta(config), arrays)
    if description.get("untrained"):
        warnings.warn(
            f"{file}: the parameters are untrained (step 0). Hint: continue the run, with imaml train "
            "--resume --out DIR.",
            RuntimeWarning,
            stacklevel=2,
        )
    prepare()
    untrained = bool(description.get("untrained"))
    return Learner(theta, _with_data(config, path / "config.json"), str(file), untrained)


def _with_data(config: Config, file: Path) -> Config:
    """The config with the place and the splits of its data, which only a run's directory knows."""
    try:
        stored = load_config(file.read_text(), str(file)).domain
    except (OSError, ConfigError):
        return config
    same = type(stored) is type(config.domain)
    return replace(config, domain=config.domain.restored(stored)) if same else config


def save(path: str | Path, theta: Tree, config: Config | str, untrained: bool = False) -> None:
    """Write an artefact: theta as safetensors, the configuration as JSON in its header.

    It contains no paths of data and no names of tasks.

    Args:
        path: The file.
        theta: The meta-parameters.
        config: The run's configuration, or the reason why it has none.
        untrained: Whether theta is as it was at step 0, so that `load` warns.
    """
    if isinstance(config, str):
        run: dict[str, object] = {"config": None, "reason": config}
    else:
        run = {"config": to_json(replace(config, domain=config.domain.published()))}
    if untrained:
        run["untrained"] = True
    description = {"format": FORMAT, "version": __version__, **run}
    write_artefact(path, flatten_names(jax.device_get(theta)), description)


def like_theta(config: Config) -> Tree:
    """Return theta's structure, shapes and dtypes, without data.

    Args:
        config: A run's configuration.

    Returns:
        A tree of `jax.ShapeDtypeStruct`.
    """
    domain = config.domain.without_data()
    method = config.method.build(domain)
    return jax.eval_shape(lambda key: method.kept(domain, key), jax.random.key(0))


class Interval(NamedTuple):
    """Predicted targets and the ends of their intervals, each ``(n,)``, in the target's units."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Predictor(Pickled):
    """One task's adapted parameters, ready to predict.

    Attributes:
        phi: The adapted parameters.
        classes: The labels or actions of the columns of `predict_proba`; None if predictions are not classes.
        solution: How the inner solve ended. Look at ``solution.status`` if predictions matter.
        recipe: The recipe of the domain that the task is of.
        statistics: What the domain's `forward` needs of the support set.
        support: The encoded support set.
        theta: The meta-parameters that were adapted.
        method: The recipe of the method.
    """

    phi: Tree
    classes: np.ndarray | None
    solution: Solution
    recipe: DomainRecipe
    statistics: Tree
    support: Tree
    theta: Tree
    method: MethodRecipe

    @functools.cached_property
    def domain(self) -> DomainBase:
        """The domain that the task is of, without data."""
        return self.recipe.without_data()

    @functools.cached_property
    def posterior(self) -> Laplace:
        """Laplace's posterior of the task's parameters, computed at the first access.

        For classes, the regularisation strength is the precision of the prior. For numbers, the run must have
        learned the noise variance; otherwise a ConfigError is raised.
        """
        return _programs(self.method, self.recipe).posterior(self.phi, self.theta, self.support)

    def export(self, path: str | Path, *, platforms: Sequence[str] = ()) -> None:
        """Write this task's predictor for a process without this package; see `Learner.export`.

        Args:
            path: The file.
            platforms: Where it will run, such as ``("cpu", "cuda", "tpu")``; by default on this platform.

        Raises:
            ConfigError: If it is not from a run of `imaml.fit`, or its loss is a density of your own.
            ArtefactError: If the file cannot be written.
        """
        known = Learner(self.theta, Config(self.recipe, self.method))
        rows = len(jax.tree.leaves(self.support)[0])
        _export(Path(path), known, [rows], platforms, self)

    def predict(self, x: Tree) -> np.ndarray:
        """Predict.

        Args:
            x: Query data as the domain's `encode_query` takes them: images ``(n, 28, 28[, 1])``, inputs, a
                table's rows, states, points, latent points or damaged drawings; or a sampled ``task.query``.

        Returns:
            Labels or actions ``(n,)`` if the task has classes; else what the domain's `decode` returns, such
            as targets in their units, log densities, or drawings.

        Raises:
            DataError: If the query data do not fit.
            NumericalError: If a prediction is NaN or infinite.
        """
        if self.classes is not None:
            return self.classes[np.argmax(self.predict_proba(x), axis=1)]
        return self.domain.decode(self._outputs(self.domain.encode_query(x)), x)

    def predict_interval(self, x: Tree, level: float = 0.9) -> Interval:
        """Predict targets with intervals, noise included.

        Intervals come from Laplace's posterior of the task's parameters (`imaml.posterior`), so they are
        wider if the support set is uninformative.

        Args:
            x: Rows as `predict` takes them.
            level: The probability that a target lies in its interval.

        Returns:
            The mean and both ends for each row.

        Raises:
            ConfigError: If the run has learned no noise (methods evidence, moments and posterior learn it),
                or predicts classes.
            NumericalError: If an interval is NaN or infinite.
        """
        if self.classes is not None:
            raise ConfigError("predict_interval: expected numbers, got classes. Hint: use predict_proba.")
        require_number("predict_interval", 0, 1, open=True, level=level)
        posterior = self.posterior
        found = self._by_row(_under, None, posterior, self.support, rows=self.domain.encode_query(x))
        noise = jax.device_get(posterior.noise)
        parts = self.domain.interval(noise, found.mean, found.covariance, level, x)
        return Interval(*(_finite("predict_interval", part) for part in parts))

    def predict_proba(self, x: Tree, uncertainty: bool = False) -> np.ndarray:
        """Predict class probabilities.

        Args:
            x: Query data as `predict` takes them.
            uncertainty: Whether to use the task's posterior (probit approximation) instead of its mean alone.
                Probabilities are then less extreme if the support set is uninformative. If the prior was not
                learned, they rank images well, but are far too low (docs/bayes.md).

        Returns:
            ``(n, classes)``, float32, rows a softmax, columns in the order of ``classes``.

        Raises:
            ConfigError: If predictions are not classes.
            DataError: If the query data do not fit.
            NumericalError: If a probability is NaN or infinite.
        """
        if self.classes is None:
            raise ConfigError("predict_proba: expected classes, got numbers. Hint: use predict.")
        rows, ways = self.domain.encode_query(x), len(self.classes)
        if uncertainty:
            chances = self._by_row(_under, ways, self.posterior, self.support, rows=rows)
            return _finite("predict_proba", chances)
        return self._outputs(rows, ways)

    def _outputs(self, rows: Tree, ways: int | None = None) -> np.ndarray:
        return _finite("predict", self._by_row(_answers, ways, self.phi, self.statistics, rows=rows))

    def _by_row(self, program: Callable[..., Tree], ways: int | None, *known: Tree, rows: Tree) -> Tree:
        """What a program makes of rows, of which it takes AT_ONCE at a time: the last ones are filled up."""
        total = len(jax.tree.leaves(rows)[0])
        parts = []
        for start in range(0, total, AT_ONCE):
            taken = slice(start, start + AT_ONCE)
            filled = lambda leaf, taken=taken: np.resize(leaf[taken], (AT_ONCE, *leaf.shape[1:]))  # noqa: E731
            piece, count = jax.tree.map(filled, rows), min(AT_ONCE, total - start)
            parts.append(_compiled(program, self.recipe, ways)(*known, piece, count))
        return jax.tree.map(lambda *each: np.concatenate(each)[:total], *jax.device_get(parts))


def _finite(what: str, predictions: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(predictions)):
        raise NumericalError(f"{what}: expected finite predictions, got NaN or infinity.")
    return predictions


def _looped(one: Callable[[Tree], Tree], rows: Tree, count: Array) -> Tree:
    """What ``one`` makes of each of the first ``count`` rows, zeros behind them.

    One row after another, as in a batched product a row may round otherwise beside other rows.
    """

    def of(i: Array | int) -> Tree:
        return one(jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, i, 1), rows))

    def take(i: Array, found: Tree) -> Tree:
        return jax.tree.map(lambda every, new: every.at[i].set(new), found, of(i))

    size = len(jax.tree.leaves(rows)[0])
    blank = jax.tree.map(lambda new: jnp.zeros((size, *new.shape), new.dtype), jax.eval_shape(of, 0))
    return lax.fori_loop(0, count, take, blank)


@functools.lru_cache(maxsize=64)
def _compiled(program: Callable[..., Tree], recipe: DomainRecipe, ways: int | None) -> Callable[..., Tree]:
    """The program for rows of a domain."""
    about = text_of(recipe) if program is _answers else None  # no file can hold a posterior's functions
    return KeptProgram(
        functools.partial(program, recipe, ways), about and f"{program.__name__} {ways} {about}", jax.jit
    )


def _answers(
    recipe: DomainRecipe, ways: int | None, phi: Tree, statistics: Tree, rows: Tree, count: Array
) -> Array:
    """The answer to each row: probabilities (ways,), or the outputs if ``ways`` is None."""

    def one(row: Tree) -> Array:
        outputs = recipe.without_data().forward(phi, row, statistics)[0]
        return outputs if ways is None else jax.nn.softmax(outputs[:ways])

    return _looped(one, rows, count)


def _under(
    recipe: DomainRecipe, ways: int | None, posterior: Laplace, support: Tree, rows: Tree, count: Array
) -> Tree:
    """As `_answers`, by a posterior; its likelihood takes all of the support set, outputs are `Predicted`."""
    domain = recipe.without_data()

    def one(row: Tree) -> Tree:
        def outputs(phi: Tree, batch: Tree) -> Array:
            found = domain.forward(phi, row, domain.statistics(phi, support))
            return found if ways is None else found[:, :ways]

        if ways is None:
            found = posterior.outputs(domain.query_batch(row), outputs)
        else:
            found = posterior.probabilities(row, outputs=outputs)
        return jax.tree.map(lambda leaf: leaf[0], found)

    return _looped(one, rows, count)


class _Programs(NamedTuple):
    """The compiled functions of a method on a domain."""

    solve: Callable[[Tree, Tree], tuple[Tree, Solution, Tree]]  # (theta, support) -> phi, ..., statistics
    posterior: Callable[[Tree, Tree, Tree], Laplace]  # (phi, theta, support) -> of the parameters at phi


@functools.lru_cache(maxsize=32)
def _programs(recipe: MethodRecipe, kind: DomainRecipe) -> _Programs:
    found = _functions(recipe, kind)
    about = text_of(recipe, kind)
    return _Programs(KeptProgram(found.solve, about and f"solve {about}"), whole_program(found.posterior))


def _functions(recipe: MethodRecipe, kind: DomainRecipe) -> _Programs:
    """What is compiled, not marked for compilation."""
    domain = kind.without_data()
    method = recipe.build(domain)

    def solve(theta: Tree, support: Tree) -> tuple[Tree, Solution, Tree]:
        phi, solution = method.adapt(theta, support)
        return phi, solution, domain.statistics(phi, support)

    def posterior_at(phi: Tree, theta: Tree, support: Tree) -> Laplace:
        problem, prior = summed((method.new_task or method).problem, theta, support)
        return posterior(problem, phi, prior, support, **domain.posterior_form(support))

    return _Programs(solve, posterior_at)


def adapt(theta: Tree, config: Config, x: Tree, y: ArrayLike | None = None) -> Predictor:
    """Adapt meta-parameters to a new task; see `Learner.adapt`.

    Args:
        theta: The meta-parameters.
        config: The configuration that they were learned by.
        x: The support data.
        y: Labels or targets, if they are not part of ``x``.

    Returns:
        A predictor for the task.

    Raises:
        DataError: If the support data do not fit.
        NumericalError: If the inner solve ends in NaN or infinity.
    """
    recipe = config.domain.published()  # so that one program serves the same domain on other data
    support, classes = config.domain.without_data().encode(x, y)
    programs = _programs(config.method, recipe)
    phi, solution, statistics = programs.solve(theta, support)
    if not np.isfinite(np.asarray(solution.stats.residual)):
        raise NumericalError(f"adapt: expected a finite inner solution, got NaN. {solution.status.advice}")
    return Predictor(phi, classes, solution, recipe, statistics, support, theta, config.method)


def _export(
    path: Path, known: Learner, sizes: Sequence[int], platforms: Sequence[str], task: Predictor | None = None
) -> None:
    """Write the programs of a learner, or of one of its tasks."""
    recipe, theta = known.config.domain.published(), known.theta
    domain = recipe.without_data()
    solve, posterior_at = _functions(known.config.method, recipe)
    about, _, query = domain.standalone(1, AT_ONCE)
    asked, programs = (query, np.int32(AT_ONCE)), {}

    def adapted(theta: Tree, support: Tree) -> Tree:
        phi, solution, statistics = solve(theta, support)
        return (phi, statistics), solution.stats.residual

    def answer(found: Tree, rows: Tree, count: Array) -> Tree:
        return _answers(recipe, None, found[0], found[1], rows, count)

    def spread(theta: Tree, found: Tree, support: Tree, rows: Tree, count: Array) -> Tree:
        under = posterior_at(found[0], theta, support)
        mean, covariance = _under(recipe, None, under, support, rows, count)
        variance = jnp.diagonal(covariance, axis1=1, axis2=2)
        return mean, variance if under.noise is None else variance + under.noise

    for size in sizes:
        support = domain.standalone(size, AT_ONCE).support
        found = jax.eval_shape(adapted, theta, support)[0]
        if task is None:
            programs[f"adapt-{size}"] = adapted, (theta, support)
        programs["answer"] = answer, (found, *asked)
        if about["spread"]:
            programs[f"spread-{size}"] = spread, (theta, found, support, *asked)
    arrays: dict[str, Tree] = {"theta": theta}
    if task is not None:
        arrays |= {"task": (task.phi, task.statistics), "support": task.support}
        about["task"] = [*sizes, None if task.classes is None else task.classes.tolist()]
    about |= {"rows": sorted(sizes), "queries": AT_ONCE}
    write_standalone(path, about, arrays, programs, platforms)
