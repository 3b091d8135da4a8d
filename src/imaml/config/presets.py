"""Named configurations, each chosen by trials on its validation split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..core.errors import ConfigError
from ..core.validation import not_one_of
from ..domains.control.carts import CartsRecipe
from ..domains.control.mazes import MazesRecipe
from ..domains.control.navigation import NavigationRecipe
from ..domains.control.plants import PlantsRecipe
from ..domains.fewshot.domain import FewShotRecipe
from ..domains.generative.densities import DensitiesRecipe, Family
from ..domains.generative.generation import GenerationRecipe
from ..domains.generative.imitation import ImitationRecipe
from ..domains.generative.restoration import RestorationRecipe
from ..domains.regression import SinusoidRecipe
from ..domains.tables.domain import TablesRecipe
from ..inner.games import ExtraGradient
from ..inner.gradient import GradientDescent
from ..inner.newton import NewtonCG
from ..linear.bicgstab import BiCGStab
from ..linear.cg import CG
from ..linear.gmres import GMRES
from .method import (
    AsReleasedRecipe,
    Bayes,
    EvidenceRecipe,
    IMAMLRecipe,
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


def _omniglot(ways: int, shots: int, tasks: int, steps: int = 8000) -> Config:
    augmentation = {"rotations": False, "symmetries": True, "distortion": 0.8, "within": 0.5}
    return Config(
        FewShotRecipe("omniglot", ways, shots, queries=5 if ways == 5 else 2, **augmentation),
        _SOLVED,
        Optimiser("muon", 7e-3, warmup=100, clip=1.0, average=0.998),
        Training(steps=steps, tasks=tasks, validate_every=2500, validation_tasks=500, checkpoint_every=500),
    )


_ADAM = Optimiser("adam", 3e-3, clip=1.0)


def _minutes(steps: int, tasks: int) -> Training:
    """Training of a small network that draws its own tasks."""
    return Training(steps=steps, tasks=tasks, validate_every=0, checkpoint_every=100, test_tasks=200)


def _fitted(domain: PlantsRecipe | DensitiesRecipe, strength: float) -> Config:
    """A network fitted to a task by Newton's method."""
    solver = CG(steps=15)
    return Config(
        domain,
        IMAMLRecipe(
            strength=strength, inner=NewtonCG(steps=4, linear=solver), linear=solver, curvature="gauss-newton"
        ),
        _ADAM,
        _minutes(500, 16),
    )


def _steered(domain: NavigationRecipe | CartsRecipe, linear: BiCGStab | GMRES) -> Config:
    return Config(
        domain,
        IMAMLRecipe(strength=1.0, inner=GradientDescent(0.1, steps=40), linear=linear),
        _ADAM,
        _minutes(500, 16),
    )


def _imitation(family: Family) -> Config:
    return Config(
        ImitationRecipe(family),
        IMAMLRecipe(strength=0.1, inner=ExtraGradient(0.03, steps=60), linear=BiCGStab(steps=15)),
        _ADAM,
        _minutes(500, 16),
    )


def _mazes(domain: MazesRecipe, rate: float, adam: float) -> Config:
    return Config(
        domain,
        IMAMLRecipe(strength=0.02, inner=GradientDescent(rate, steps=80), linear=BiCGStab(steps=20)),
        Optimiser("adam", adam, clip=1.0),
        _minutes(800, 16),
    )


def _generation() -> Config:
    return Config(
        GenerationRecipe(),
        # The penalty makes the game turn inwards, so plain descent of both converges, and at larger rates
        # than two fields a step; steps enough to arrive, as only then the implicit gradient is right.
        IMAMLRecipe(strength=0.1, inner=GradientDescent(0.03, steps=250), linear=GMRES(steps=10)),
        Optimiser("adam", 5e-3, clip=1.0),
        _minutes(800, 8),
    )


def _restoration(damage: Literal["half", "noise"]) -> Config:
    solver = CG(steps=10)
    return Config(
        RestorationRecipe(damage=damage),
        IMAMLRecipe(
            strength=0.01, inner=NewtonCG(steps=3, linear=solver), linear=solver, curvature="gauss-newton"
        ),
        _ADAM,
        _minutes(400, 8),
    )


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Args:
        about: What it is, in one line.
        config: The configuration.
    """

    about: str
    config: Config = field(default_factory=Config)


PRESETS: dict[str, Preset] = {
    "characters-5w1s": Preset(
        "read procedural handwriting, 5 ways, 1 shot; needs no data, minutes",
        Config(
            FewShotRecipe("characters", 5, 1, queries=3, normalisation="inductive"),
            _SOLVED,
            Optimiser("muon", 7e-3, warmup=20, clip=1.0, average=0.98),
            Training(steps=480, tasks=8, validate_every=200, validation_tasks=100, checkpoint_every=100),
        ),
    ),
    "omniglot-5w1s": Preset("real handwriting, 5 ways, 1 shot", _omniglot(5, 1, 8)),
    "omniglot-5w5s": Preset("real handwriting, 5 ways, 5 shots", _omniglot(5, 5, 8)),
    "omniglot-20w1s": Preset("real handwriting, 20 ways, 1 shot", _omniglot(20, 1, 4)),
    "omniglot-20w5s": Preset("real handwriting, 20 ways, 5 shots", _omniglot(20, 5, 4)),
    "as-released": Preset(
        "the published implementation's script and defaults, on Omniglot, 5 ways, 1 shot",
        Config(
            FewShotRecipe("omniglot", 5, 1, queries=5),
            AsReleasedRecipe(
                strength=1.0, inner=GradientDescent(0.01, steps=16), linear=CG(steps=5), chunk=1
            ),
            Optimiser("adam", 1e-2, schedule="constant", epsilon=1e-3),
            Training(steps=1000, tasks=16, validate_every=250, validation_tasks=500),
        ),
    ),
    "sinusoid": Preset(
        "regression of sinusoids from 10 points; needs no data, a minute",
        Config(
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
    ),
    "sinusoid-evidence": Preset(
        "the same from 5 points by a prior over functions, which knows how sure it is; no data, minutes",
        Config(
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
    ),
    "trajectory": Preset(
        "swing up a pendulum seen for two seconds, by a plan on an adapted model; no data, minutes",
        _fitted(PlantsRecipe("pendulum"), 0.05),
    ),
    "trajectory-cart-pole": Preset(
        "the same for a cart with a pole", _fitted(PlantsRecipe("cart-pole"), 0.05)
    ),
    "trajectory-quadrotor": Preset(
        "the same for a quadrotor in a plane", _fitted(PlantsRecipe("quadrotor"), 0.05)
    ),
    "actor-critic": Preset(
        "steer a point to a goal against a wind, from four random walks; no data, minutes",
        _steered(NavigationRecipe(), BiCGStab(steps=15)),
    ),
    "actor-critic-cart-pole": Preset(
        "keep up the pole of a cart whose motor may be wired either way, after 100 random pushes; needs "
        "gymnasium; minutes",
        _steered(CartsRecipe(), GMRES(steps=15)),
    ),
    "game": Preset(
        "imitate points around a closed curve, from 24 of them, by a generator; no data, minutes",
        _imitation("curves"),
    ),
    "game-modes": Preset("the same for points around four modes", _imitation("modes")),
    "energy": Preset(
        "the density of points around a closed curve from 12 of them, by an energy; no data, minutes",
        _fitted(DensitiesRecipe("curves"), 0.02),
    ),
    "energy-modes": Preset("the same for points around four modes", _fitted(DensitiesRecipe("modes"), 0.02)),
    "energy-inpainting": Preset(
        "complete half-hidden drawings of a character seen ten times, by an energy; no data, minutes",
        _restoration("half"),
    ),
    "energy-denoising": Preset("the same for drawings with noise on them", _restoration("noise")),
    "gan": Preset(
        "draw more of a character seen ten times, generator against discriminator; no data, minutes",
        _generation(),
    ),
    "q-learning": Preset(
        "find ways through slippery mazes from eight random walks in each; no data, minutes",
        _mazes(MazesRecipe(), 0.2, 3e-3),
    ),
    "q-learning-lakes": Preset(
        "the same over frozen lakes with holes, from corner to corner; no data, minutes",
        # Walks leave one corner: values by a network, learned there alone, grow without end elsewhere.
        _mazes(MazesRecipe(maps="lakes", walls=0.0, holes=0.2, slip=2 / 3, hidden=()), 1.0, 0.01),
    ),
    "tables": Preset(
        "your own table, rows grouped by a column into tasks (bring the data); seconds",
        Config(
            # Where tasks are few, each that is held out is missed: none for validation, which picks nothing.
            TablesRecipe(validation=0.0, test=0.1),
            PosteriorRecipe(
                strength=1.0,
                learned="dense",
                inner=NewtonCG(steps=3, linear=CG(steps=20)),
                linear=CG(steps=20),
                curvature="gauss-newton",
            ),
            Optimiser("adam", 0.02, clip=10.0),
            Training(steps=500, tasks=8, validate_every=0, test_tasks=500),
        ),
    ),
    "tables-evidence": Preset(
        "a linear mixed model of your own table, by the evidence of all its rows (bring the data); seconds",
        Config(
            TablesRecipe(holdout="none", validation=0.0, test=0.0),
            MomentsRecipe(
                strength=1.0,
                learned="dense",
                inner=NewtonCG(steps=3, linear=CG(steps=20)),
            ),
            Optimiser("sgd", 1.0, schedule="constant"),
            Training(
                steps=2000,
                tasks=0,
                gradient_below=1e-4,
                validate_every=0,
                checkpoint_every=1000,
                test_tasks=100,
            ),
        ),
    ),
    "mini-imagenet-5w1s": Preset(
        "mini-ImageNet from its usual folders, 84 x 84 x 3 (bring the data)",
        Config(
            FewShotRecipe("mini-imagenet", 5, 1, queries=5, rotations=False, filters=32),
            IMAMLRecipe(strength=0.5, inner=GradientDescent(0.1, steps=10), chunk=1),
            Optimiser("adam", 1e-3),
            Training(steps=10_000, tasks=4),
        ),
    ),
}


def preset(name: str) -> Config:
    """The configuration of a preset.

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
