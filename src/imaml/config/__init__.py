"""A run's configuration: nested recipes of its domain, method, optimiser and training.

`__init__.pyi` lists the names, and says where each is defined.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
