"""Meta-learning with implicit gradients (iMAML) on JAX.

Names are imported when first used, so that `import imaml` is quick; `dir(imaml)` lists them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "problem": (
        "Problem",
        "Task",
        "Theta",
        "composed",
        "equilibrium",
        "fixed_point",
        "game",
        "learned",
        "plain",
        "proximal",
        "stationary",
    ),
    "likelihoods": ("Categorical", "Gaussian", "likelihood"),
    "products": ("LinearSolver",),
    "curvature": ("Quadrature",),
    "laplace": ("Laplace", "log_evidence", "posterior"),
    "bayesian": (
        "EmpiricalBayes",
        "ExpectationMaximisation",
        "IBaML",
        "averaged",
        "evidence",
        "moments",
    ),
    "linear": ("CG", "Neumann"),
    "general": ("BiCGStab", "Dense"),
    "gmres": ("GMRES",),
    "certificate": ("Certificate",),
    "accuracy": ("Tightening",),
    "inner": ("Custom", "Descent", "GradientDescent", "InnerSolver", "ProximalGradient"),
    "rules": (
        "Rule",
        "first_order",
        "implicit",
        "implicit_vjp",
        "solve",
        "unrolled",
    ),
    "pooled": ("displacement", "envelope", "jointly"),
    "solution": ("Certification", "Ending", "Solution", "Stats", "Status"),
    "methods": (
        "FOMAML",
        "IMAML",
        "Joint",
        "MAML",
        "MetaGradient",
        "MetaSGD",
        "Metrics",
        "Reptile",
        "Solving",
    ),
    "game_solvers": ("ExtraGradient", "OptimisticDescent"),
    "minres": ("MINRES",),
    "damped": ("DampedCG",),
    "nystrom": ("Diagonal", "Nystrom"),
    "newton": ("Newton", "NewtonCG"),
    "last_step": ("one_step",),
    "stochastic": ("SGD", "SVRG"),
    "classical": ("External", "LBFGS", "LevenbergMarquardt", "NonlinearCG", "least_squares"),
    "released": ("ThenPulled", "as_released"),
    "models": ("MLP", "Conv4"),
    "trajectory": ("ILQR", "Trajectory"),
    "domains.densities": ("densities",),
    "domains.generation": ("generation",),
    "domains.imitation": ("imitation",),
    "domains.mazes": ("mazes",),
    "domains.carts": ("carts",),
    "domains.navigation": ("navigation",),
    "domains.plants": ("plants",),
    "domains.restoration": ("restoration",),
    "domains.fewshot": ("characters", "omniglot", "mini_imagenet", "image_tasks"),
    "domains.regression": ("linear_gaussian", "sinusoid"),
    "domains.tables": ("tables",),
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


def __getattr__(name: str) -> Any:
    """The public object of that name, imported now."""
    if name not in _WHERE:
        raise AttributeError(f"module 'imaml' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names."""
    return ["__version__", *sorted(_WHERE)]


if TYPE_CHECKING:
    from .accuracy import Tightening as Tightening
    from .adaptation import Predictor as Predictor
    from .adaptation import load as load
    from .bayesian import EmpiricalBayes as EmpiricalBayes
    from .bayesian import ExpectationMaximisation as ExpectationMaximisation
    from .bayesian import IBaML as IBaML
    from .bayesian import averaged as averaged
    from .bayesian import evidence as evidence
    from .bayesian import moments as moments
    from .certificate import Certificate as Certificate
    from .classical import LBFGS as LBFGS
    from .classical import External as External
    from .classical import LevenbergMarquardt as LevenbergMarquardt
    from .classical import NonlinearCG as NonlinearCG
    from .classical import least_squares as least_squares
    from .config import Optimiser as Optimiser
    from .curvature import Quadrature as Quadrature
    from .damped import DampedCG as DampedCG
    from .domains.carts import carts as carts
    from .domains.densities import densities as densities
    from .domains.fewshot import characters as characters
    from .domains.fewshot import image_tasks as image_tasks
    from .domains.fewshot import mini_imagenet as mini_imagenet
    from .domains.fewshot import omniglot as omniglot
    from .domains.generation import generation as generation
    from .domains.imitation import imitation as imitation
    from .domains.mazes import mazes as mazes
    from .domains.navigation import navigation as navigation
    from .domains.plants import plants as plants
    from .domains.regression import linear_gaussian as linear_gaussian
    from .domains.regression import sinusoid as sinusoid
    from .domains.restoration import restoration as restoration
    from .domains.tables import tables as tables
    from .errors import ArtefactError as ArtefactError
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import ImamlError as ImamlError
    from .errors import NumericalError as NumericalError
    from .errors import StructureError as StructureError
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate
    from .game_solvers import ExtraGradient as ExtraGradient
    from .game_solvers import OptimisticDescent as OptimisticDescent
    from .general import BiCGStab as BiCGStab
    from .general import Dense as Dense
    from .gmres import GMRES as GMRES
    from .inner import Custom as Custom
    from .inner import Descent as Descent
    from .inner import GradientDescent as GradientDescent
    from .inner import InnerSolver as InnerSolver
    from .inner import ProximalGradient as ProximalGradient
    from .laplace import Laplace as Laplace
    from .laplace import log_evidence as log_evidence
    from .laplace import posterior as posterior
    from .last_step import one_step as one_step
    from .likelihoods import Categorical as Categorical
    from .likelihoods import Gaussian as Gaussian
    from .likelihoods import likelihood as likelihood
    from .linear import CG as CG
    from .linear import Neumann as Neumann
    from .methods import FOMAML as FOMAML
    from .methods import IMAML as IMAML
    from .methods import MAML as MAML
    from .methods import Joint as Joint
    from .methods import MetaGradient as MetaGradient
    from .methods import MetaSGD as MetaSGD
    from .methods import Metrics as Metrics
    from .methods import Reptile as Reptile
    from .methods import Solving as Solving
    from .minres import MINRES as MINRES
    from .models import MLP as MLP
    from .models import Conv4 as Conv4
    from .newton import Newton as Newton
    from .newton import NewtonCG as NewtonCG
    from .nystrom import Diagonal as Diagonal
    from .nystrom import Nystrom as Nystrom
    from .pooled import displacement as displacement
    from .pooled import envelope as envelope
    from .pooled import jointly as jointly
    from .problem import Problem as Problem
    from .problem import Task as Task
    from .problem import Theta as Theta
    from .problem import composed as composed
    from .problem import equilibrium as equilibrium
    from .problem import fixed_point as fixed_point
    from .problem import game as game
    from .problem import learned as learned
    from .problem import plain as plain
    from .problem import proximal as proximal
    from .problem import stationary as stationary
    from .products import LinearSolver as LinearSolver
    from .released import ThenPulled as ThenPulled
    from .released import as_released as as_released
    from .rules import Rule as Rule
    from .rules import first_order as first_order
    from .rules import implicit as implicit
    from .rules import implicit_vjp as implicit_vjp
    from .rules import solve as solve
    from .rules import unrolled as unrolled
    from .solution import Certification as Certification
    from .solution import Ending as Ending
    from .solution import Solution as Solution
    from .solution import Stats as Stats
    from .solution import Status as Status
    from .stochastic import SGD as SGD
    from .stochastic import SVRG as SVRG
    from .training import Run as Run
    from .training import train as train
    from .trajectory import ILQR as ILQR
    from .trajectory import Trajectory as Trajectory
