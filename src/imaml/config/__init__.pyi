"""The names of this package, and where each is defined; `__init__.py` reads this list."""

from .method import Anchored as Anchored
from .method import AsReleasedRecipe as AsReleasedRecipe
from .method import Bayes as Bayes
from .method import EvidenceRecipe as EvidenceRecipe
from .method import FOMAMLRecipe as FOMAMLRecipe
from .method import IMAMLRecipe as IMAMLRecipe
from .method import MAMLRecipe as MAMLRecipe
from .method import MetaSGDRecipe as MetaSGDRecipe
from .method import Method as Method
from .method import MethodRecipe as MethodRecipe
from .method import MomentsRecipe as MomentsRecipe
from .method import MultitaskRecipe as MultitaskRecipe
from .method import NewTask as NewTask
from .method import PosteriorRecipe as PosteriorRecipe
from .method import ReptileRecipe as ReptileRecipe
from .method import TransferRecipe as TransferRecipe
from .method import changed as changed
from .optimiser import Optimiser as Optimiser
from .overrides import override as override
from .overrides import overrides as overrides
from .presets import PRESETS as PRESETS
from .presets import preset as preset
from .run import Config as Config
from .run import load_config as load_config
from .training import Training as Training
