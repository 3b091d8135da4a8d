"""An experiment: the objects of a run, built once, and the operations on them."""

import contextlib
import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from optax import GradientTransformation

from ..config.method import MethodRecipe
from ..config.methods import made
from ..config.optimiser import Optimiser, Outer, described, outer
from ..config.run import Config
from ..config.training import Training
from ..core.errors import ConfigError
from ..core.recipes import to_json
from ..core.tree import Tree
from ..core.validation import not_one_of
from ..domains.base import Domain, in_step, require_domain
from ..meta.gradient import MetaGradient
from .directory import check_resumable, claimed, create_run_directory
from .loop import Loop, Run, Watch
from .step import NewtonStep, State, devices_mesh, initial_state, make_step

CALLBACKS = ("logger", "loggers", "callback", "callbacks")  # what other libraries call them
UNSTORED = "the optimiser is an Optax transform, which has no JSON form"


@dataclass(frozen=True, eq=False)
class Experiment:
    """The objects of a run: made by `assemble` from a configuration, or by `train` from objects.

    Attributes:
        domain: Where tasks come from.
        method: How the meta-parameters are learned; its mesh shares tasks between devices.
        outer: The outer optimiser.
        training: How long, and how often it validates and saves.
        config: The configuration that all this was built from, or None.
        reason: Why there is no configuration, or one that does not say everything; else empty.
    """

    domain: Domain
    method: MetaGradient
    outer: Outer
    training: Training = field(default_factory=Training)
    config: Config | None = None
    reason: str = ""

    @functools.cached_property
    def tasks(self) -> int:
        """The number of tasks in each step."""
        return in_step(self.domain, self.training.tasks)

    def begin(self, start: Tree = None) -> tuple[Domain, State, Array]:
        """Make the arguments of the first step, placed on the devices.

        Args:
            start: Meta-parameters to start from, or None for fresh ones.

        Returns:
            The domain, the state of step 0, and the key of all steps.

        Raises:
            ConfigError: If the shapes of ``start`` do not fit, or it is not finite.
        """
        fresh, key = jax.random.split(jax.random.key(self.training.seed))
        state = initial_state(self.domain, self.method, self.outer, fresh, start)
        arguments = self.domain, state, key
        if self.method.mesh is None:
            return arguments
        # Placed once: the second step finds what the first compiled, and data are not copied at each.
        return jax.device_put(arguments, NamedSharding(self.method.mesh, PartitionSpec()))

    def step(self, certify: bool = False, estimate: bool = True) -> Wrapped:
        """Make the jitted training step.

        Args:
            certify: Whether the errors of the meta-gradients are bounded.
            estimate: Whether they are estimated in the steps that are logged.

        Returns:
            The function (domain, state, key) -> (state, report); see `imaml.training.step.make_step`.

        Raises:
            ConfigError: If errors are to be bounded and the method has no certificate.
        """
        if self.outer.newton:
            return NewtonStep(self.method, self.domain, self.tasks)  # type: ignore[return-value]
        method = self.method.certifying() if certify else self.method
        logged = (self.training.log_every, self.training.steps) if estimate else (0, 0)
        return make_step(method, self.outer, self.tasks, *logged)

    def train(
        self,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        start: Tree = None,
        progress: bool | None = None,
        on_step: Watch | None = None,
        on_validation: Watch | None = None,
    ) -> Run:
        """Run the experiment.

        Args:
            out: The run directory, or None to write nothing.
            resume: Whether to continue from the newest sound checkpoint in ``out``.
            start: Meta-parameters to start from, or None for fresh ones.
            progress: None or True shows the run on stderr; False shows warnings only.
            on_step: Called after each step with a dict ("step", "seconds", "theta"; in steps that are logged
                "loss", "gradient_norm", ... as well); the run ends if it returns True.
            on_validation: Called likewise after each validation, with "scores", "ci95", "before", "tasks",
                "failed" and "best" as well.

        Returns:
            What was learned.

        Raises:
            ConfigError: If arguments do not fit, or ``out`` holds another run.
            NumericalError: If no task of a step is usable, or one is not and the policy is "raise".
            CheckpointError: If the run is to be resumed and no checkpoint is valid.
        """
        directory = None if out is None else Path(out)
        if resume and directory is None:
            raise ConfigError("train: out: expected the run directory with resume=True, got None.")
        if resume and start is not None:
            raise ConfigError(
                "train: start: expected None with resume=True, which continues from a checkpoint, got "
                "meta-parameters."
            )
        if directory is not None and resume:
            check_resumable(directory, self.config or self.reason)
        with contextlib.nullcontext() if directory is None else claimed(directory):
            if directory is not None and not resume:
                create_run_directory(directory)
            return Loop(self, directory, on_step, on_validation).run(resume, start, progress)


def assemble(
    config: Config, domain: Domain | None = None, transform: GradientTransformation | None = None
) -> Experiment:
    """Build the objects of a configuration, once.

    Args:
        config: The configuration.
        domain: The configuration's domain where it is built already, so that its data are not read again.
        transform: The outer optimiser, if it is an Optax transform, which the configuration cannot hold.

    Returns:
        The experiment, its tasks shared between the devices there are.

    Raises:
        ConfigError: If parts of the configuration do not go together.
        DataError: If the domain's data are missing or damaged.

    Example:
        >>> from imaml.config.presets import preset
        >>> assemble(preset("sinusoid")).tasks
        25
    """
    config = dataclasses.replace(config, domain=config.domain.uncalibrated())
    built = config.domain.build() if domain is None else domain
    optimiser, reason = (config.optimiser, "") if transform is None else (transform, UNSTORED)
    made = outer(optimiser, config.training.steps)
    method = config.method.build(built, _mesh(made, built, config.training.tasks))
    chosen = config.method if method.origin is None else method.origin.method
    # The recipes know the layout of the data, and what was chosen by them.
    config = dataclasses.replace(config, domain=built.recipe, method=chosen)
    return Experiment(built, method, made, config.training, config, reason)


def _mesh(made: Outer, domain: Domain, tasks: int) -> Mesh | None:
    """Return the devices that share the tasks of a step; one where the step is a single small program."""
    return None if made.newton else devices_mesh(in_step(domain, tasks))


def train(
    domain: Domain,
    method: MetaGradient | MethodRecipe,
    optimiser: Optimiser | GradientTransformation | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    start: Tree = None,
    progress: bool | None = None,
    on_step: Watch | None = None,
    on_validation: Watch | None = None,
    **options: object,
) -> Run:
    """Learn meta-parameters on a domain's training tasks.

    A run made only of recipes (a domain of this package, `imaml.config.Method`, `imaml.Optimiser`) stores its
    configuration, so that `imaml.load` and the command line can use and resume it. A run with a method made
    by `imaml.IMAML(...)` or with an Optax transform can be resumed from Python, with the same objects.

    Ctrl-C or SIGTERM stops the run after the current step, with a checkpoint. While the first step is
    compiled, or during a validation, the run stops immediately; a resumed run repeats the validation.

    Args:
        domain: Where tasks come from.
        method: A method, such as ``imaml.IMAML(problem, query_loss, ...)``, or the recipe of one.
        optimiser: The outer optimiser, or any Optax transform. By default ``imaml.Optimiser()``.
        out: The run directory (config.json, events.jsonl, checkpoints/, artefact.safetensors), or None to
            write nothing.
        resume: Whether to continue from the newest valid checkpoint in ``out``. The result is bit for bit
            that of an uninterrupted run on the same machine and devices.
        start: Meta-parameters to start from, or None for fresh ones.
        progress: None or True shows the run on stderr; False shows warnings only.
        on_step: Called after each step; see `Experiment.train`.
        on_validation: Called after each validation.
        **options: The fields of `imaml.config.Training`: steps, tasks, seed, minutes, patience, ...

    Returns:
        What was learned.

    Raises:
        ConfigError: If arguments do not fit, or ``out`` holds another run.
        NumericalError: If no task of a step is usable, or one is not and the policy is "raise". The last
            good state is in a checkpoint.
        CheckpointError: If the run is to be resumed and no checkpoint is valid.

    Example:
        >>> import imaml
        >>> domain = imaml.sinusoid()
        >>> method = imaml.IMAML(domain.problem(0.5), domain.query_loss,
        ...                      inner=imaml.GradientDescent(0.01, steps=5), linear=imaml.CG(steps=3))
        >>> imaml.train(domain, method, imaml.Optimiser("adam", 1e-3), steps=2, tasks=4, validate_every=0,
        ...             progress=False).step
        2
    """
    known = [f.name for f in dataclasses.fields(Training)]
    for name in options.keys() - known:
        if name in CALLBACKS:
            raise ConfigError(
                f"train: option: expected callbacks as on_step= and on_validation=, got {name!r}. Hint: log "
                "= imaml.loggers.TensorBoard(folder), then on_step=log, on_validation=log."
            )
        raise ConfigError(not_one_of("train: option", name, known))
    require_domain("train", domain)  # a run would end in an evaluation that asks it for more
    training = Training(**options)  # type: ignore[arg-type]
    optimiser = Optimiser() if optimiser is None else optimiser
    transform = outer(optimiser, training.steps)
    method = made(method, domain, _mesh(transform, domain, training.tasks))
    config, reason = _described(domain, method, optimiser, training)
    experiment = Experiment(domain, method, transform, training, config, reason)
    watched = {"on_step": on_step, "on_validation": on_validation}
    return experiment.train(out=out, resume=resume, start=start, progress=progress, **watched)


def _described(
    domain: Domain, method: MetaGradient, optimiser: Optimiser | GradientTransformation, training: Training
) -> tuple[Config | None, str]:
    """Return the configuration of the recipes that objects were built from, or None and the reason."""
    origin = method.origin
    if origin is None:
        return None, (
            "the method was made by hand; one that is built from a recipe, imaml.config.Method(...), can be "
            "stored"
        )
    if origin.domain != domain.recipe:
        return None, "the method was built on another domain"
    config = Config(domain.recipe, origin.method, described(optimiser), training)
    try:
        to_json(config)
    except ConfigError as error:
        return None, str(error).rstrip(".")
    return config, "" if isinstance(optimiser, Optimiser) else UNSTORED
