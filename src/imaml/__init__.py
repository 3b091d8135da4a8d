"""Meta-learning with implicit gradients (iMAML) on JAX.

Names are imported when first used, so that `import imaml` is quick; `dir(imaml)` lists them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "problem": ("Anchor", "Problem", "fixed_point", "game", "learned", "plain", "proximal", "stationary"),
    "linear": ("CG", "BiCGStab", "Dense", "GMRES", "LinearSolver", "Neumann"),
    "inner": ("Descent", "GradientDescent", "InnerSolver"),
    "rules": ("Rule", "first_order", "implicit", "implicit_vjp", "solve", "unrolled"),
    "solution": ("Ending", "Solution", "Stats", "Status"),
    "methods": ("IMAML", "Metrics", "Task"),
    "models": ("MLP", "Conv4"),
    "domains.fewshot": ("characters", "omniglot", "mini_imagenet", "image_tasks"),
    "domains.regression": ("linear_gaussian", "sinusoid"),
    "config": ("Optimiser",),
    "training": ("Run", "train"),
    "evaluation": ("Evaluation", "evaluate"),
    "adaptation": ("Predictor", "load"),
    "errors": (
        "ArtefactError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "ImamlError",
        "NumericalError",
        "StructureError",
    ),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'imaml' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from .adaptation import Predictor, load
    from .config import Optimiser
    from .domains.fewshot import characters, image_tasks, mini_imagenet, omniglot
    from .domains.regression import linear_gaussian, sinusoid
    from .errors import (
        ArtefactError,
        CheckpointError,
        ConfigError,
        DataError,
        ImamlError,
        NumericalError,
        StructureError,
    )
    from .evaluation import Evaluation, evaluate
    from .inner import Descent, GradientDescent, InnerSolver
    from .linear import CG, GMRES, BiCGStab, Dense, LinearSolver, Neumann
    from .methods import IMAML, Metrics, Task
    from .models import MLP, Conv4
    from .problem import Anchor, Problem, fixed_point, game, learned, plain, proximal, stationary
    from .rules import Rule, first_order, implicit, implicit_vjp, solve, unrolled
    from .solution import Ending, Solution, Stats, Status
    from .training import Run, train
