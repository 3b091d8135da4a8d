"""How a user's images become a few-shot task, and how answers come back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import DataError
from ...core.tree import Tree
from ...core.validation import some_of
from ...problems.base import Task
from ..base import Answers, DomainBase, Encoded, Predicts
from ..networks import Conv4
from ..scenes import Example
from .episodes import Labelled
from .images import Drawings, read_image_folder

if TYPE_CHECKING:
    from .domain import FewShotRecipe

ROUNDING = 1e-5  # how far pixels may lie outside [0, 1]: 400 times less than a grey level of 8 bits


class FewShotInterface(DomainBase):
    """The part of `FewShot` that meets a user's data.

    Answers are inductive: query images are normalised by the support set's statistics, so that no answer
    depends on its neighbours in the batch.
    """

    recipe: FewShotRecipe
    support_type: ClassVar[type] = Labelled

    @property
    def network(self) -> Conv4:
        """The network that learns these tasks."""
        return self.recipe.network

    def encode(self, x: Any, y: Any = None) -> Encoded:
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
        images = check_images(x, self.network, "x")
        classes, labels = check_labels(y, images.shape[0], self.network.ways)
        _warn_where_alike(images, classes, labels)
        return Encoded(Labelled(jnp.asarray(images), jnp.asarray(labels, jnp.int32)), classes)

    def encode_query(self, x: Any) -> np.ndarray:
        """Return images as ``(n, side, side, channels)``; see `check_images`."""
        return check_images(x.images if isinstance(x, Labelled | Drawings) else x, self.network, "x")

    def statistics(self, phi: Tree, support: Labelled) -> Any:
        """Return the statistics that support images are normalised by, layer by layer."""
        return self.network.forward(phi, support.images)[1]

    def forward(self, phi: Tree, rows: Array, statistics: Any = None) -> Array:
        """Return logits ``(n, ways)`` for images, normalised by ``statistics``."""
        return self.network.forward(phi, rows, statistics)[0]

    def posterior_form(self, support: Labelled) -> dict[str, Any]:
        """Return the options of a low-rank posterior, whose rank is at most that of the curvature."""
        return {"form": "low-rank", "rank": support.labels.shape[0] * (self.network.ways - 1)}

    def read(self, path: str | Path, query: bool = False) -> Drawings:
        """Return a folder's image files, shrunk to the network's side; see `read_image_folder`."""
        return read_image_folder(path, self.network.side, self.network.channels, query)

    def answers(
        self, predictor: Predicts, support: Drawings, query: Drawings, uncertainty: bool = False
    ) -> Answers:
        """Return the class of each image file, and the probability of every class."""
        probabilities = predictor.predict_proba(query.images, uncertainty)
        assert predictor.classes is not None
        classes = [str(c) for c in predictor.classes]
        rows: list[dict[str, Any]] = [
            {"file": str(file), "class": classes[int(np.argmax(p))], "probability": round(float(p.max()), 6)}
            for file, p in zip(query.files, probabilities, strict=True)
        ]
        lines = [f"{row['file']}\t{row['class']}\t{row['probability']:.3f}" for row in rows]
        right = sum(row["class"] == label for row, label in zip(rows, query.labels, strict=True))
        note = f"{right} of {len(rows)} as their folders are named" * (set(query.labels) <= set(classes))
        for row, p in zip(rows, probabilities, strict=True):
            row["probabilities"] = {c: round(float(v), 6) for c, v in zip(classes, p, strict=True)}
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
        return [
            Example(
                support=support.images,
                support_labels=support.labels,
                query=query.images,
                query_labels=query.labels,
                predicted=np.argmax(probabilities, axis=1),
                probabilities=probabilities,
            )
        ]


def check_images(x: Any, network: Conv4, name: str) -> np.ndarray:
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
        raise DataError(f"{name}: the images have different shapes; accepted is one array.") from error
    if not (np.issubdtype(images.dtype, np.floating) or images.dtype == bool):
        raise DataError(
            f"{name}: dtype {images.dtype}; accepted are floats in [0, 1], 1 = ink (divide 8-bit images by "
            "255, and turn dark ink on light paper round: 1 - x / 255)."
        )
    accepted = f"(n, {side}, {side}, {channels})" + (f" or (n, {side}, {side})" if channels == 1 else "")
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.ndim != 4 or images.shape[1:] != (side, side, channels) or images.shape[0] == 0:
        raise DataError(f"{name}: shape {np.shape(x)}; accepted is {accepted} with n of at least 1.")
    # Checked before the cast to float32, in which a value of 1e300 would be infinite.
    if not np.all(np.isfinite(images)):
        raise DataError(
            f"{name}: {int((~np.isfinite(images)).sum())} pixels are NaN or infinite; accepted are floats in "
            "[0, 1]: leave those images out, or mend them."
        )
    if images.dtype != bool:
        rounding = max(ROUNDING, 4 * float(np.finfo(images.dtype).eps))
        low, high = images.min(), images.max()
        if low < -rounding or high > 1 + rounding:
            # str of a NumPy number has as many digits as tell it from its neighbours, so never "1" here.
            raise DataError(
                f"{name}: expected floats in [0, 1], 1 = ink (give or take {rounding:.1g} of rounding), got "
                f"values from {low!s} to {high!s}. Hint: divide 8-bit images by 255; clip what a resampling "
                "filter has overshot."
            )
    return np.clip(images.astype(np.float32), 0, 1)


def _warn_where_alike(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> None:
    """Warns where support images do not tell classes apart, as a solve of them ends well all the same.

    Images are compared as 8 bits, so that rounding makes no difference. A blank image leaves nothing to
    normalise by (a variance of 0), and any query image is then answered with a probability near 1.
    """
    coded = np.rint(255 * images).astype(np.uint8)
    spread = coded.max((1, 2)).astype(int) - coded.min((1, 2))
    blank = spread.max(-1) <= 1  # one grey level: a blank page after averaging
    of: dict[bytes, set[int]] = {}
    for image, label in zip(coded, labels.tolist(), strict=True):
        of.setdefault(image.tobytes(), set()).add(label)
    shared = np.array([len(of[image.tobytes()]) > 1 for image in coded])
    numbers = range(len(classes))
    empty = [str(classes[k]) for k in numbers if blank[labels == k].all()]
    twins = [
        str(classes[k])
        for k in numbers
        if (shared | blank)[labels == k].all() and not blank[labels == k].all()
    ]
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
            f"adapt: expected support images that tell the classes apart, got {'; '.join(found)}. Answers "
            "for these classes mean nothing, however high their probability. Hint: look at the images, and "
            "check that each has the label of its own class.",
            RuntimeWarning,
            stacklevel=5,  # the caller of Learner.adapt
        )


def check_labels(y: Any, count: int, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels, sorted, and each row's number among them.

    Args:
        y: The labels, numbers or texts.
        count: How many rows there are.
        ways: How many classes the network tells apart.

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
            "y: labels cannot be compared; accepted are numbers, or texts, one an image."
        ) from error
    if labels.shape != (count,):
        raise DataError(f"y: shape {labels.shape}; accepted is one label for each of {count} support images.")
    if np.issubdtype(labels.dtype, np.floating) and not np.all(np.isfinite(labels)):
        raise DataError("y: a label is NaN or infinite; accepted are whole numbers, or texts.")
    if len(classes) < 2:
        raise DataError(f"labels: all are {classes[0]!s}; accepted are 2 to {ways} different ones.")
    if len(classes) > ways:
        raise DataError(
            f"labels: {len(classes)} different ones; this artefact was trained to tell {ways} classes apart "
            f"and accepts 2 to {ways}. Train one with --domain.ways={len(classes)}."
        )
    return classes, numbers
