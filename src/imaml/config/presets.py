"""Named configurations, each chosen by trials on its validation split."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import ConfigError
from ..core.validation import not_one_of
from ..domains.control.carts import CartsRecipe
from ..domains.control.mazes import MazesRecipe
from ..domains.control.navigation import NavigationRecipe
from ..domains.control.plants import PlantsRecipe
from ..domains.fewshot.domain import FewShotRecipe
from ..domains.generative.densities import DensitiesRecipe
from ..domains.generative.generation import GenerationRecipe
from ..domains.generative.imitation import ImitationRecipe
from ..domains.generative.restoration import RestorationRecipe
from ..domains.recipes import DomainRecipe
from ..domains.regression import SinusoidRecipe
from ..domains.tables.domain import TablesRecipe
from ..inner.base import InnerSolver
from ..inner.games import ExtraGradient
from ..inner.gradient import GradientDescent
from ..inner.newton import NewtonCG
from ..linear.base import LinearSolver
from ..linear.bicgstab import BiCGStab
from ..linear.cg import CG
from ..linear.gmres import GMRES
from .method import (
    AsReleasedRecipe,
    Bayes,
    EvidenceRecipe,
    IMAMLRecipe,
    MethodRecipe,
    MomentsRecipe,
    NewTask,
    PosteriorRecipe,
)
from .optimiser import Optimiser
from .run import Config
from .training import Training

# Learning takes large steps, as it can afford few; a new task wants smaller ones, and a weaker anchor.
_SOLVED = IMAMLRecipe(
    strength=0.1,
    inner=GradientDescent(0.4, steps=8),
    new_task=NewTask(GradientDescent(0.2, steps=32), strength=0.01),
    linear=CG(steps=3),
    chunk=1,
)

_TABLE_SOLVER = NewtonCG(steps=3, linear=CG(steps=20))


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Args:
        about: What it is, in one line.
        config: The configuration.
    """

    about: str
    config: Config = field(default_factory=Config)


def _preset(
    about: str, domain: DomainRecipe, method: MethodRecipe, optimiser: Optimiser, training: Training
) -> Preset:
    return Preset(about, Config(domain, method, optimiser, training))


def _omniglot(about: str, ways: int, shots: int, tasks: int) -> Preset:
    augmentation = {"rotations": False, "symmetries": True, "distortion": 0.8, "within": 0.5}
    return _preset(
        about,
        FewShotRecipe("omniglot", ways, shots, queries=5 if ways == 5 else 2, **augmentation),
        _SOLVED,
        Optimiser("muon", 7e-3, warmup=100, clip=1.0, average=0.998),
        Training(steps=8000, tasks=tasks, validate_every=2500, validation_tasks=500, checkpoint_every=500),
    )


def _small(
    about: str,
    domain: DomainRecipe,
    method: MethodRecipe,
    steps: int = 500,
    tasks: int = 16,
    rate: float = 3e-3,
) -> Preset:
    """Return a preset with a small network, on a domain that draws its own tasks."""
    training = Training(steps=steps, tasks=tasks, validate_every=0, checkpoint_every=100, test_tasks=200)
    return _preset(about, domain, method, Optimiser("adam", rate, clip=1.0), training)


def _newton(strength: float, steps: int = 4, linear: int = 15) -> IMAMLRecipe:
    """Return implicit MAML with Newton's method, each step by so many steps of conjugate gradients."""
    solver = CG(steps=linear)
    inner = NewtonCG(steps=steps, linear=solver)
    return IMAMLRecipe(strength=strength, inner=inner, linear=solver, curvature="gauss-newton")


def _first_order(strength: float, inner: InnerSolver, linear: LinearSolver) -> IMAMLRecipe:
    """Return implicit MAML with an inner solver that takes gradients only."""
    return IMAMLRecipe(strength=strength, inner=inner, linear=linear)


_STEERED, _GAME = GradientDescent(0.1, steps=40), ExtraGradient(0.03, steps=60)

PRESETS: dict[str, Preset] = {
    "characters-5w1s": _preset(
        "read procedural handwriting, 5 ways, 1 shot; needs no data, minutes",
        FewShotRecipe("characters", 5, 1, queries=3, normalisation="inductive"),
        _SOLVED,
        Optimiser("muon", 7e-3, warmup=20, clip=1.0, average=0.98),
        Training(steps=480, tasks=8, validate_every=200, validation_tasks=100, checkpoint_every=100),
    ),
    "omniglot-5w1s": _omniglot("real handwriting, 5 ways, 1 shot", 5, 1, 8),
    "omniglot-5w5s": _omniglot("real handwriting, 5 ways, 5 shots", 5, 5, 8),
    "omniglot-20w1s": _omniglot("real handwriting, 20 ways, 1 shot", 20, 1, 4),
    "omniglot-20w5s": _omniglot("real handwriting, 20 ways, 5 shots", 20, 5, 4),
    "as-released": _preset(
        "the published implementation's script and defaults, on Omniglot, 5 ways, 1 shot",
        FewShotRecipe("omniglot", 5, 1, queries=5),
        AsReleasedRecipe(strength=1.0, inner=GradientDescent(0.01, steps=16), linear=CG(steps=5), chunk=1),
        Optimiser("adam", 1e-2, schedule="constant", epsilon=1e-3),
        Training(steps=1000, tasks=16, validate_every=250, validation_tasks=500),
    ),
    "sinusoid": _preset(
        "regression of sinusoids from 10 points; needs no data, a minute",
        SinusoidRecipe(),
        # Its Hessian is indefinite at most steps: with it, theta goes where tasks diverge.
        IMAMLRecipe(
            strength=0.1,
            inner=GradientDescent(0.005, steps=32),
            new_task=NewTask(NewtonCG(steps=8, linear=CG(steps=10))),
            linear=CG(steps=8),
            curvature="gauss-newton",
        ),
        Optimiser("adam", 3e-3, clip=1.0),
        Training(steps=3000, tasks=25, validate_every=1000, validation_tasks=500, checkpoint_every=1000),
    ),
    "sinusoid-evidence": _preset(
        "the same from 5 points by a prior over functions, which knows how sure it is; no data, minutes",
        SinusoidRecipe(shots=5),
        # The last layer alone is a task's own, so a posterior is a line's: exact, and dense.
        EvidenceRecipe(
            strength=1.0,
            learned="dense",
            adapt=("layer3",),
            inner=NewtonCG(steps=2, linear=CG(steps=60)),
            linear=CG(steps=60),
            curvature="gauss-newton",
            bayes=Bayes(noise=2e-3),
        ),
        Optimiser("adam", 0.01, clip=1.0),
        Training(steps=8000, tasks=25, validate_every=0, checkpoint_every=1000),
    ),
    "trajectory": _small(
        "swing up a pendulum seen for two seconds, by a plan on an adapted model; no data, minutes",
        PlantsRecipe("pendulum"),
        _newton(0.05),
    ),
    "trajectory-cart-pole": _small(
        "the same for a cart with a pole", PlantsRecipe("cart-pole"), _newton(0.05)
    ),
    "trajectory-quadrotor": _small(
        "the same for a quadrotor in a plane", PlantsRecipe("quadrotor"), _newton(0.05)
    ),
    "actor-critic": _small(
        "steer a point to a goal against a wind, from four random walks; no data, minutes",
        NavigationRecipe(),
        _first_order(1.0, _STEERED, BiCGStab(steps=15)),
    ),
    "actor-critic-cart-pole": _small(
        "keep up the pole of a cart whose motor may be wired either way, after 100 random pushes; needs "
        "gymnasium; minutes",
        CartsRecipe(),
        _first_order(1.0, _STEERED, GMRES(steps=15)),
    ),
    "game": _small(
        "imitate points around a closed curve, from 24 of them, by a generator; no data, minutes",
        ImitationRecipe("curves"),
        _first_order(0.1, _GAME, BiCGStab(steps=15)),
    ),
    "game-modes": _small(
        "the same for points around four modes",
        ImitationRecipe("modes"),
        _first_order(0.1, _GAME, BiCGStab(steps=15)),
    ),
    "energy": _small(
        "the density of points around a closed curve from 12 of them, by an energy; no data, minutes",
        DensitiesRecipe("curves"),
        _newton(0.02),
    ),
    "energy-modes": _small("the same for points around four modes", DensitiesRecipe("modes"), _newton(0.02)),
    "energy-inpainting": _small(
        "complete half-hidden drawings of a character seen ten times, by an energy; no data, minutes",
        RestorationRecipe(damage="half"),
        _newton(0.01, 3, 10),
        steps=400,
        tasks=8,
    ),
    "energy-denoising": _small(
        "the same for drawings with noise on them",
        RestorationRecipe(damage="noise"),
        _newton(0.01, 3, 10),
        steps=400,
        tasks=8,
    ),
    "gan": _small(
        "draw more of a character seen ten times, generator against discriminator; no data, minutes",
        GenerationRecipe(),
        # The penalty makes the game turn inwards, so plain descent of both converges, and at larger rates
        # than two fields a step; steps enough to arrive, as only then the implicit gradient is right.
        _first_order(0.1, GradientDescent(0.03, steps=250), GMRES(steps=10)),
        steps=800,
        tasks=8,
        rate=5e-3,
    ),
    "q-learning": _small(
        "find ways through slippery mazes from eight random walks in each; no data, minutes",
        MazesRecipe(),
        _first_order(0.02, GradientDescent(0.2, steps=80), BiCGStab(steps=20)),
        steps=800,
    ),
    "q-learning-lakes": _small(
        "the same over frozen lakes with holes, from corner to corner; no data, minutes",
        # Walks leave one corner: values by a network, learned there alone, grow without end elsewhere.
        MazesRecipe(maps="lakes", walls=0.0, holes=0.2, slip=2 / 3, hidden=()),
        _first_order(0.02, GradientDescent(1.0, steps=80), BiCGStab(steps=20)),
        steps=800,
        rate=0.01,
    ),
    "tables": _preset(
        "your own table, rows grouped by a column into tasks (bring the data); seconds",
        # Where tasks are few, each that is held out is missed: none for validation, which picks nothing.
        TablesRecipe(validation=0.0, test=0.1),
        PosteriorRecipe(
            strength=1.0,
            learned="dense",
            inner=_TABLE_SOLVER,
            linear=_TABLE_SOLVER.linear,
            curvature="gauss-newton",
        ),
        Optimiser("adam", 0.02, clip=10.0),
        Training(steps=500, tasks=8, validate_every=0, test_tasks=500),
    ),
    "tables-evidence": _preset(
        "a linear mixed model of your own table, by the evidence of all its rows (bring the data); seconds",
        TablesRecipe(holdout="none", validation=0.0, test=0.0),
        MomentsRecipe(strength=1.0, learned="dense", inner=_TABLE_SOLVER),
        Optimiser("sgd", 1.0, schedule="constant"),
        Training(2000, 0, gradient_below=1e-4, validate_every=0, checkpoint_every=1000, test_tasks=100),
    ),
    "mini-imagenet-5w1s": _preset(
        "mini-ImageNet from its usual folders, 84 x 84 x 3 (bring the data)",
        FewShotRecipe("mini-imagenet", 5, 1, queries=5, rotations=False, filters=32),
        IMAMLRecipe(strength=0.5, inner=GradientDescent(0.1, steps=10), chunk=1),
        Optimiser("adam", 1e-3),
        Training(steps=10_000, tasks=4),
    ),
}


def preset(name: str) -> Config:
    """Return the configuration of a preset.

    Args:
        name: A key of `PRESETS`.

    Returns:
        The configuration.

    Raises:
        ConfigError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(not_one_of("preset", name, PRESETS))
    return PRESETS[name].config
