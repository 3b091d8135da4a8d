"""Meta-learning with implicit gradients (iMAML) on JAX.

Names are imported when they are first used, so that `import imaml` is quick. `__init__.pyi` lists all names
and the module that defines each.
"""

import lazy_loader

from .core import moved
from .core.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
moved.install()
