"""How a user's images become a few-shot task, and how answers come back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ...core.errors import DataError
from ...core.tree import Tree
from ...core.validation import some_of
from ...problems.base import Task
from ..base import Answers, DomainBase, Encoded, Predicts
from ..networks import Conv4
from ..scenes import Example
from .episodes import Labelled
from .images import Drawings, read_image_folder
from .losses import statistics_of

if TYPE_CHECKING:
    from .domain import FewShotRecipe

ROUNDING = 1e-5  # how far pixels may lie outside [0, 1]: 400 times less than a grey level of 8 bits


Support = ArrayLike | Labelled | Drawings


class FewShotInterface(DomainBase):
    """The part of `FewShot` that reads a user's data and answers in the user's terms.

    Answers are inductive: query images are normalised by the support set's statistics, so that no answer
    depends on its neighbours in the batch.
    """

    recipe: FewShotRecipe
    support_type: ClassVar[type] = Labelled

    def encode(self, x: Support, y: ArrayLike | None = None) -> Encoded:
        """Return a user's support images and labels as a batch.

        Args:
            x: Images ``(n, side, side)`` or ``(n, side, side, channels)``, floats in [0, 1], 1 = ink; or a
                `Labelled` batch; or `Drawings`.
            y: Their labels, of any sortable kind.

        Returns:
            The batch, and the classes, sorted.

        Raises:
            DataError: If the images or labels do not fit.
        """
        if isinstance(x, Labelled | Drawings):
            x, y = x.images, x.labels
        images = check_images(x, self.recipe.network, "x")
        most = self.recipe.ways if self.recipe.head == "own" else None
        classes, labels = check_labels(y, images.shape[0], most)
        _warn_if_ambiguous(images, classes, labels)
        targets = None if most else jnp.asarray(np.eye(len(classes), dtype=np.float32)[labels])
        numbers = jnp.asarray(labels, jnp.int32)
        return Encoded(Labelled(jnp.asarray(images), numbers, targets=targets), classes)

    def encode_query(self, x: Support) -> np.ndarray:
        """Return images as ``(n, side, side, channels)``; see `check_images`."""
        return check_images(x.images if isinstance(x, Labelled | Drawings) else x, self.recipe.network, "x")

    def statistics(self, phi: Tree, support: Labelled) -> Tree:
        """Return the statistics that query images are normalised by, layer by layer."""
        if self.recipe.normalisation == "running":
            return statistics_of(self.recipe.network, "running", phi, support)
        return self.recipe.network.embed(phi, support.images)[1]

    def posterior_form(self, support: Labelled) -> dict[str, object]:
        """Return the options of a low-rank posterior, whose rank is at most that of the curvature."""
        ways = self.recipe.ways if support.targets is None else support.targets.shape[1]
        return {"form": "low-rank", "rank": support.labels.shape[0] * (ways - 1)}

    def read(self, path: str | Path, query: bool = False) -> Drawings:
        """Return a folder's image files, shrunk to the network's side; see `read_image_folder`."""
        return read_image_folder(path, self.recipe.network.side, self.recipe.network.channels, query)

    def answers(
        self, predictor: Predicts, support: Drawings, query: Drawings, uncertainty: bool = False
    ) -> Answers:
        """Return the class of each image file, and the probability of every class."""
        probabilities = predictor.predict_proba(query.images, uncertainty)
        assert predictor.classes is not None
        classes = [str(c) for c in predictor.classes]
        rows = [
            {
                "file": str(file),
                "class": classes[int(np.argmax(p))],
                "probability": round(float(p.max()), 6),
                "probabilities": {c: round(float(v), 6) for c, v in zip(classes, p, strict=True)},
            }
            for file, p in zip(query.files, probabilities, strict=True)
        ]
        lines = [f"{row['file']}\t{row['class']}\t{row['probability']:.3f}" for row in rows]
        right = sum(row["class"] == label for row, label in zip(rows, query.labels, strict=True))
        note = f"{right} of {len(rows)} as their folders are named" * (set(query.labels) <= set(classes))
        return Answers(rows, lines, {"classes": classes, "normalisation": "inductive"}, lambda: note)

    def write(self, task: Task, out: Path) -> tuple[int, int]:
        """Write a task as OUT/support/CLASS/N.png and OUT/query/CLASS/N.png, drawings dark on light."""
        from PIL import Image

        for part, rows in (("support", task.support), ("query", task.query)):
            count: dict[int, int] = {}
            for image, label in zip(rows.images, rows.labels, strict=True):
                number = count[int(label)] = count.get(int(label), 0) + 1
                folder = out / part / f"class-{int(label) + 1}"
                folder.mkdir(parents=True, exist_ok=True)
                grey = image.shape[-1] == 1  # a drawing, 1 = ink
                pixels = np.rint(255 * np.clip(1 - image[..., 0] if grey else image, 0, 1)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        return len(task.support.labels), len(task.query.labels)

    def examples(self, before: Tree, predictor: Predicts, task: Task) -> list[Example]:
        """Return the task's images with the classes that were predicted."""
        support, query = jax.device_get(task)
        probabilities = predictor.predict_proba(query.images)
        predicted = np.argmax(probabilities, axis=1)
        return [Example(*support[:2], *query[:2], predicted=predicted, probabilities=probabilities)]


def check_images(x: ArrayLike, network: Conv4, name: str) -> np.ndarray:
    """Return images as float32 ``(n, side, side, channels)`` in [0, 1].

    Args:
        x: The images, floats or booleans. Values outside [0, 1] by rounding are clipped: by ``ROUNDING``, or
            four units in the last place of a coarser dtype.
        network: What they are for.
        name: What messages call them.

    Returns:
        The images.

    Raises:
        DataError: If the shape or dtype is another, or a value is not finite or truly outside [0, 1].
    """
    side, channels = network.side, network.channels
    try:
        images = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{name}: expected one array, got images of different shapes.") from error
    expected = f"floats in [0, 1], 1 = ink, of shape (n, {side}, {side}, {channels}), n at least 1"
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.shape[1:] != (side, side, channels) or not images.size:
        raise DataError(f"{name}: expected {expected}, got shape {np.shape(x)}.")
    if images.dtype == bool:
        return images.astype(np.float32)
    hint = "Hint: divide 8-bit images by 255, and invert dark ink on light paper, 1 - x / 255"
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{name}: expected {expected}, got dtype {images.dtype}. {hint}.")
    # Checked before the cast to float32, in which a value of 1e300 would be infinite.
    rounding = max(ROUNDING, 4 * float(np.finfo(images.dtype).eps))
    low, high = images.min(), images.max()
    if not (low >= -rounding and high <= 1 + rounding):  # as of NaN, too
        # str of a NumPy number has as many digits as tell it from its neighbours, so never "1" here.
        raise DataError(
            f"{name}: expected {expected} (up to {rounding:.1g} of rounding), got values from {low!s} "
            f"to {high!s}. {hint}; clip what a resampling filter has overshot."
        )
    return np.clip(images.astype(np.float32), 0, 1)


def _warn_if_ambiguous(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> None:
    """Warn if support images do not tell classes apart, as the inner solve converges all the same.

    Images are compared as 8 bits, so that rounding makes no difference. A blank image leaves nothing to
    normalise by (a variance of 0), and any query image is then answered with a probability near 1.
    """
    coded = np.rint(255 * images).astype(np.uint8)
    spread = coded.max((1, 2)).astype(int) - coded.min((1, 2))
    blank = spread.max(-1) <= 1  # one grey level: a blank page after averaging
    owners: dict[bytes, set[int]] = {}
    for image, label in zip(coded, labels.tolist(), strict=True):
        owners.setdefault(image.tobytes(), set()).add(label)
    shared = np.array([len(owners[image.tobytes()]) > 1 for image in coded])
    mine = [labels == k for k in range(len(classes))]
    empty = [str(c) for c, rows in zip(classes, mine, strict=True) if blank[rows].all()]
    useless = [str(c) for c, rows in zip(classes, mine, strict=True) if (shared | blank)[rows].all()]
    twins = [name for name in useless if name not in empty]
    found = []
    if len(empty) > 1:
        found.append(f"{len(empty)} classes of {len(classes)} have only blank images ({some_of(empty)})")
    if twins:
        found.append(
            f"{len(twins)} of {len(classes)} classes have only images that other classes have, too "
            f"({some_of(twins)})"
        )
    if found:
        warnings.warn(
            f"adapt: expected support images that distinguish the classes, got {'; '.join(found)}. "
            "Predictions of these classes are meaningless, even if their probability is high. Hint: look at "
            "the images, and check that each has the label of its own class.",
            RuntimeWarning,
            stacklevel=5,  # the caller of Learner.adapt
        )


def check_labels(y: ArrayLike | None, count: int, ways: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels, sorted, and each row's number among them.

    Args:
        y: The labels, numbers or texts.
        count: How many rows there are.
        ways: How many classes the network tells apart, or None for any number.

    Returns:
        The classes, and an integer for each row.

    Raises:
        DataError: If there is not one label for each row, or too few or too many different ones.
    """
    try:
        labels = np.asarray(y)
        classes, numbers = np.unique(labels, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"y: expected numbers or texts, got labels that cannot be sorted ({error})."
        ) from error
    if labels.shape != (count,):
        raise DataError(f"y: expected a label for each of {count} support images, got shape {labels.shape}.")
    if np.issubdtype(labels.dtype, np.floating) and not np.all(np.isfinite(labels)):
        raise DataError("y: expected whole numbers or texts, got a label that is NaN or infinite.")
    if len(classes) < 2:
        raise DataError(
            f"labels: expected at least 2 different ones, got {len(classes)} "
            f"({some_of(classes.astype(str).tolist())})."
        )
    if ways is not None and len(classes) > ways:
        raise DataError(
            f"labels: expected 2 to {ways} different ones, as in training, got {len(classes)} "
            f"({some_of(classes.astype(str).tolist())}). Hint: for more, train with --domain.ways=N."
        )
    return classes, numbers
