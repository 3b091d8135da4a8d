"""Few-shot classification of images."""

import lazy_loader

# What the module of this name had; for one release.
_NAMES = {"domain": ["FewShot", "FewShotRecipe"], "sources": ["characters", "image_tasks", "mini_imagenet"]}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_NAMES)
