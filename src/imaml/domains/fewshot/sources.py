"""Few-shot domains by the source of their images: generated, read from files, or a user's own."""

from __future__ import annotations

from dataclasses import replace

from .domain import FewShot, FewShotRecipe, table_of
from .images import Images


def characters(ways: int = 5, shots: int = 1, **options: object) -> FewShot:
    """Return tasks of procedural handwriting: random characters, 28 x 28, of thousands of classes.

    The default normalisation is inductive, so that the trained model can be used on one image at a time.

    Args:
        ways: Classes of a task.
        shots: Support images of each class.
        **options: The other fields of `FewShotRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.characters(ways=5, shots=1, queries=2)
        >>> task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(0))  # slow untraced
        >>> task.query.images.shape
        (10, 28, 28, 1)
    """
    return replace(FewShotRecipe("characters", ways, shots, normalisation="inductive"), **options).build()


def omniglot(ways: int = 5, shots: int = 1, data: str | None = None, **options: object) -> FewShot:
    """Return tasks of Omniglot's 1,623 handwritten characters, 28 x 28 (Lake et al. 2015).

    Args:
        ways: Classes of a task.
        shots: Support images of each class.
        data: A folder with upstream's two zip files or their unpacked folders,
            an .npz file, or None for the usual places.
        **options: The other fields of `FewShotRecipe`.

    Returns:
        The domain.
    """
    return replace(FewShotRecipe("omniglot", ways, shots, data=data), **options).build()


def mini_imagenet(data: str, ways: int = 5, shots: int = 1, **options: object) -> FewShot:
    """Return tasks of mini-ImageNet, 84 x 84 x 3, from its usual folder layout.

    Args:
        data: A folder with train/, val/ and test/.
        ways: Classes of a task.
        shots: Support images of each class.
        **options: The other fields of `FewShotRecipe`.

    Returns:
        The domain.
    """
    recipe = FewShotRecipe("mini-imagenet", ways, shots, rotations=False, data=data, filters=32)
    return replace(recipe, **options).build()


def image_tasks(table: Images, ways: int = 5, shots: int = 1, **options: object) -> FewShot:
    """Return tasks over your own table of 28 x 28 drawings.

    Args:
        table: The drawings with their splits.
        ways: Classes of a task.
        shots: Support images of each class.
        **options: The other fields of `FewShotRecipe`.

    Returns:
        The domain.
    """
    return table_of(replace(FewShotRecipe("images", ways, shots), **options), table)
