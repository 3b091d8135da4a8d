"""Few-shot classification: N ways, K shots, over any labelled images, read or generated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from ...core.errors import ConfigError, DataError
from ...core.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SeveralInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...core.validation import not_one_of
from ...problems.base import Task
from ...problems.losses import joined
from ...problems.precision import Theta
from ..networks import Conv4
from ..recipes import ReadsData
from . import distortion, strokes
from . import omniglot as omniglot_data
from .draws import OWN, draw_as_people, draw_random, draw_training
from .episodes import Indices, Labelled, accuracy, confidences, cross_entropy, turn
from .images import Images, read_split_folders
from .interface import FewShotInterface
from .losses import LAYERS, By, ImagesLoss, SquaredImagesLoss, measured
from .omniglot_files import SETS
from .splits import require_group, splits_of

DRAWN_CLASSES = {"train": (0, 20_000), "validation": (20_000, 22_000), "test": (22_000, 26_000)}
# What is in a folder that has splits, or is Omniglot's.
KNOWN = ("train", "train.csv", "omniglot.npz", *SETS, *(f"{name}.zip" for name in SETS))
BY: dict[str, By] = {"transductive": "batch", "inductive": "support", "running": "running"}
STATISTICS_TASKS = 20  # training tasks whose images give the statistics of new tasks


@recipe("domain")
class FewShotRecipe(ReadsData):
    """The recipe of a few-shot domain.

    Args:
        source: Where images come from: procedural "characters", "omniglot", "mini-imagenet", or "images",
            your own drawings: a folder with train/, val/ and test/, or a table (see `image_tasks`). A
            "folder" with a folder for each class can only be scored.
        ways: Classes of a task.
        shots: Support images of each class.
        queries: Query images of each class.
        normalisation: By which statistics a query batch is normalised in training: its own ("transductive",
            as in the literature) or the support set's ("inductive"). "running" is as "transductive" in
            training; new tasks are normalised by the statistics of many training tasks.
        head: "own": theta has a head for `ways` classes. "shared": its head has one column, which all
            classes of a task start at, so that a task may have any number of classes.
        inner_loss: What the inner problem minimises: the "cross_entropy", or the "squared" distance of the
            outputs from the labels as unit vectors. If the head alone adapts, `imaml.Inverse` solves it
            exactly.
        scale: The initial value of a learned factor that turns outputs into logits; None to use the outputs
            as logits.
        train_ways: Classes of a training task, or None for `ways`.
        train_shots: Support images of each class of a training task; successive steps use the numbers in
            turn. Empty for `shots`.
        train_queries: Query images of each class of a training task, or None for `queries`.
        rotations: Whether rotations by multiples of 90 degrees count as separate classes in training, as in
            the literature.
        symmetries: Whether each training task is shown in one of the square's eight symmetries.
        distortion: How much random maps distort training tasks and drawings; 0 for not at all (see
            `imaml.domains.fewshot.distortion`).
        within: The share of training tasks whose classes are all of one group, such as an alphabet; they are
            harder.
        copies: Distorted copies of each support image from which new tasks also learn. Methods with a
            likelihood (evidence, moments, posterior) need 0, because a copy is not another observation.
        query_copies: Distorted copies of each query image of new tasks. Predicted probabilities are averaged
            over an image and its copies.
        split: The split of Omniglot: "vinyals", "background" or "random".
        protocol: How new tasks are drawn: "random" classes and images; "turned", the same with each class
            turned by a random multiple of 90 degrees, as in published results on Omniglot; or "people", like
            the tasks that people were given (Lake et al. 2015): classes of one alphabet, the support set
            drawn by one person, the query set by another.
        data: A path, or None for the usual places.
        filters: The width of Conv4.
        downsampling: How Conv4 halves the side: "stride", or "pool", which takes four times the operations.
        aligned: Whether Conv4 sees each drawing moved to the middle and scaled to one size.
        detail: The factor between the side of the images that are read and the 28 pixels that Conv4 sees: 2
            reads 56. Images are distorted and aligned at that size, then averaged down. Needs ``aligned``.
        validation: Whether to keep the validation classes for validation. False trains on them too, for a
            final run with fixed options; then no validation tasks exist.
        limits: Splits of which only some classes are used, and which (see `FewShot.limited`).

    Raises:
        ConfigError: If a field is out of its range.
    """

    source: Literal["characters", "omniglot", "mini-imagenet", "images", "folder"] = "characters"
    ways: SeveralInt = 5
    shots: PositiveInt = 1
    queries: PositiveInt = 5
    normalisation: Literal["transductive", "inductive", "running"] = "transductive"
    head: Literal["own", "shared"] = "own"
    inner_loss: Literal["cross_entropy", "squared"] = "cross_entropy"
    scale: PositiveFloat | None = None
    train_ways: SeveralInt | None = None
    train_shots: tuple[PositiveInt, ...] = ()
    train_queries: PositiveInt | None = None
    rotations: bool = True
    symmetries: bool = False
    distortion: NonNegativeFloat = 0.0
    within: NonNegativeFloat = 0.0
    copies: NonNegativeInt = 0
    query_copies: NonNegativeInt = 0
    split: Literal["vinyals", "background", "random"] = "vinyals"
    protocol: Literal["random", "turned", "people"] = "random"
    data: str | None = None
    filters: PositiveInt = 64
    downsampling: Literal["stride", "pool"] = "stride"
    aligned: bool = False
    detail: PositiveInt = 1
    validation: bool = True
    limits: tuple[tuple[str, tuple[int, ...]], ...] = ()

    factorises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        most: dict[str, float] = {"distortion": 2, "within": 1}  # a distortion of 2 is unreadable
        if self.source == "characters":  # which belong to no alphabet
            most |= {"within": 0, "ways": min(last - first for first, last in DRAWN_CLASSES.values())}
            most["train_ways"] = DRAWN_CLASSES["train"][1]
        for name, limit in most.items():
            value = getattr(self, name)
            if value is not None and value > limit:
                raise ConfigError(
                    f"domain: {name}: expected at most {limit} for {self.source}, got {value!r}."
                )
        if self.detail > 1 and (not self.aligned or self.source in ("characters", "mini-imagenet")):
            raise ConfigError(
                f"domain: detail: expected 1 unless drawings are read from files and aligned, got "
                f"{self.detail} with source={self.source!r} and aligned={self.aligned}. Hint: omit it."
            )
        if not self.validation and self.source == "characters":
            raise ConfigError(
                "domain: validation: expected True for characters, which are drawn without end, got False. "
                "Hint: omit it."
            )
        if self.protocol == "people" and self.source != "omniglot":
            raise ConfigError(
                "domain: protocol: expected 'random' or 'turned', as only Omniglot's drawers are known, got "
                f"'people' with source={self.source!r}. Hint: omit it."
            )
        if self.train_ways not in (None, self.ways) and self.head == "own":
            raise ConfigError(
                f"domain: train_ways: expected {self.ways}, the ways of new tasks, with a head for so many "
                f"classes, got {self.train_ways}. Hint: set --domain.head=shared."
            )

    def build(self) -> FewShot:
        """Return the domain, with its data read."""
        domain = replace(self, limits=())._whole()
        for split, classes in self.limits:
            domain = domain.limited(split, classes)
        return domain

    def with_ways(self, ways: int) -> FewShotRecipe:
        """Return the recipe of tasks with another number of classes; see `DomainRecipe.with_ways`."""
        if self.head == "own" and ways != self.ways:
            raise ConfigError(
                f"--ways: expected {self.ways}, as the run's head has an output for each class, got {ways}. "
                "Hint: omit it, or train with --domain.head=shared."
            )
        return replace(self, ways=ways, within=0.0)  # which training tasks alone have

    def without_data(self) -> FewShot:
        """Return the domain with its network and problem, but no images."""
        return FewShot(None, None, None, None, {}, 0, self)

    def scored_on(self, path: str) -> FewShotRecipe:
        """Return the recipe of the same network on other images.

        They are a folder with a folder for each class; or of the kind that it learned from, and Omniglot if
        it learned from drawn ones.
        """
        source = "omniglot" if self.source == "characters" else self.source
        place = Path(path).expanduser()
        known = source == "mini-imagenet" or any((place / name).exists() for name in KNOWN)
        source = "folder" if place.is_dir() and not known else source
        # Only training tasks are of one group, and of these tables each class is a group of its own.
        within = self.within if source == "omniglot" else 0.0
        return replace(self, source=source, data=path, limits=(), within=within)

    def _whole(self) -> FewShot:
        """The domain with all classes of its splits."""
        if self.source == "characters":
            splits = {name: jnp.arange(*ends, dtype=jnp.int32) for name, ends in DRAWN_CLASSES.items()}
            return FewShot(None, None, None, None, splits, 0, self)
        if self.source == "omniglot":
            return table_of(self, omniglot_data.read(self.data, split=self.split, side=self.network.side))
        if self.data is None:
            raise DataError(
                f"{self.source}: expected images, got no path. Hint: pass --data PATH, a folder with "
                "train/, val/ and test/ and in each a folder of images for every class; for one folder with "
                "a folder for each class use imaml train images."
            )
        network = self.network
        if self.source == "folder":
            from ..tasks.folders import read_classes  # late, as it reads images

            found = read_classes(Path(self.data), network.side, network.channels)
            names, first, count = np.unique(found.labels, return_index=True, return_counts=True)
            kept = {"test": np.arange(len(names))}
            return table_of(self, Images(found.images, first, count, tuple(names), tuple(names), kept))
        return table_of(self, read_split_folders(self.data, side=network.side, channels=network.channels))

    @property
    def network(self) -> Conv4:
        """The network that learns these tasks."""
        side, channels = (84, 3) if self.source == "mini-imagenet" else (28 * self.detail, 1)
        ways = self.ways if self.head == "own" else 1
        return Conv4(ways, self.filters, side, channels, self.downsampling, self.aligned, self.detail)

    def in_training(self, step: int) -> FewShotRecipe:
        """Return the recipe of the tasks of a step of training.

        Args:
            step: The step, from 0.

        Returns:
            The recipe, whose tasks have the ways, shots and queries of that step.
        """
        return replace(
            self,
            ways=self.train_ways or self.ways,
            shots=self.train_shots[step % len(self.train_shots)] if self.train_shots else self.shots,
            queries=self.train_queries or self.queries,
            normalisation="transductive" if self.normalisation == "running" else self.normalisation,
            train_ways=None,
            train_shots=(),
            train_queries=None,
            copies=0,
            query_copies=0,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FewShot(FewShotInterface):
    """Few-shot classification tasks; made by `characters`, `omniglot`, `mini_imagenet` or `image_tasks`.

    Attributes:
        pixels: uint8 ``(rows, side, side, channels)``, or None for characters that are drawn when needed.
        first: The first row of each class, ``(classes,)``.
        counts: The number of images of each class, ``(classes,)``.
        groups: The number of each class's group, ``(classes,)``.
        splits: Class numbers by split.
        most: The largest of ``counts``.
        recipe: The recipe.
        group_names: The names of the groups.
    """

    pixels: Array | None
    first: Array | None
    counts: Array | None
    groups: Array | None
    splits: dict[str, Array]
    most: int = field(metadata={"static": True})
    recipe: FewShotRecipe = field(metadata={"static": True})
    group_names: tuple[str, ...] = field(default=(), metadata={"static": True})

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @property
    def criterion(self) -> tuple[str, bool]:
        """The accuracy that new tasks get: with running statistics the inductive one."""
        return "accuracy_inductive" if self.recipe.normalisation == "running" else "accuracy", True

    @property
    def loss(self) -> ImagesLoss | SquaredImagesLoss:
        """The inner loss, on a batch normalised as the recipe says."""
        return self._loss(BY[self.recipe.normalisation], self.recipe.copies)

    def _loss(self, by: By, copies: int = 0) -> ImagesLoss | SquaredImagesLoss:
        """The inner loss with a normalisation."""
        kind = ImagesLoss if self.recipe.inner_loss == "cross_entropy" else SquaredImagesLoss
        return kind(self.recipe.network, by, copies)

    def training_domain(self, step: int) -> FewShot:
        """Return the domain of a step's training tasks; see `FewShotRecipe.in_training`."""
        recipe = self.recipe.in_training(step)
        return self if recipe == self.recipe else replace(self, recipe=recipe)

    def init(self, key: Array) -> Tree:
        """Return fresh parameters of the network, of the scale and of the statistics where there are any."""
        return {**self.network.init(key), **self._extras()}

    def _extras(self) -> Tree:
        """The parameters besides those of the network."""
        recipe, extras = self.recipe, {}
        if recipe.scale is not None:
            extras["log_scale"] = jnp.log(jnp.float32(recipe.scale))
        if recipe.normalisation == "running":
            zeros, ones = jnp.zeros(recipe.filters, jnp.float32), jnp.ones(recipe.filters, jnp.float32)
            extras["statistics"] = {name: {"mean": zeros, "variance": ones} for name in LAYERS}
        return extras

    @property
    def finalises(self) -> bool:  # type: ignore[override]
        """Whether the statistics of training tasks normalise new tasks, or heads have one column."""
        return self.recipe.normalisation == "running" or self.recipe.head == "shared"

    def finalise(self, theta: Tree, key: Array) -> Tree:
        """Return theta with the statistics of training tasks, and a shared column of zeros.

        The column shifts the outputs of all classes equally. Its gradient consists of rounding errors, which
        an optimiser such as Adam would scale up to full steps.
        """
        mean = Theta.of(theta).mean
        if self.recipe.head == "shared":
            mean = {**mean, "head": jax.tree.map(jnp.zeros_like, mean["head"])}
        if self.recipe.normalisation == "running":
            images = lambda k: self.whole(*self.training_domain(0).sample(k, "train")).images  # noqa: E731
            keys = jax.random.split(key, STATISTICS_TASKS)
            mean = {**mean, "statistics": measured(self.recipe.network, mean, images, keys)}
        return theta._replace(mean=mean) if isinstance(theta, Theta) else mean

    def logits(self, phi: Tree, batch: Labelled, inductive: bool | None = None) -> Array:
        """Return logits ``(n, ways)``.

        Args:
            phi: The network's parameters.
            batch: The images.
            inductive: Whether to normalise by the statistics of the batch's reference instead of its own; by
                default as the recipe says.

        Returns:
            The logits.
        """
        by = BY[self.recipe.normalisation]
        if inductive is not None:
            by = "batch" if not inductive else "running" if by == "running" else "support"
        return self._averaged(self._scaled(phi, self._loss(by, self.recipe.query_copies).outputs(phi, batch)))

    def _scaled(self, phi: Tree, outputs: Array) -> Array:
        """Logits of outputs; those of a head of one column are the same for all classes."""
        if self.recipe.head == "shared" and outputs.shape[1] == 1:
            outputs = jnp.broadcast_to(outputs, (outputs.shape[0], self.recipe.ways))
        return outputs if self.recipe.scale is None else jnp.exp(phi["log_scale"]) * outputs

    def query_loss(self, phi: Tree, theta: Tree, batch: Labelled) -> Array:
        """Return the mean cross-entropy of the logits."""
        return cross_entropy(self.logits(phi, batch), batch.labels)

    def forward(self, phi: Tree, rows: Array, statistics: Tree = None) -> Array:
        """Return logits for images; see `DomainBase.forward`."""
        copies = self.recipe.query_copies
        if copies and statistics is None:
            statistics = self.network.forward(phi, rows)[1]
        outputs = self.network.forward(phi, distortion.with_copies(rows, copies), statistics)[0]
        return self._averaged(self._scaled(phi, outputs))

    def _averaged(self, logits: Array) -> Array:
        """Log of the mean probabilities over each image and its copies; logits as they are without copies."""
        number = 1 + self.recipe.query_copies
        if number == 1:
            return logits
        each = jax.nn.log_softmax(logits).reshape(-1, number, logits.shape[1])
        return jax.nn.logsumexp(each, axis=1) - jnp.log(jnp.float32(number))

    @staticmethod
    def whole(support: Labelled, query: Labelled) -> Labelled:
        """Return all of a task's images as one batch."""
        return joined(support, query._replace(reference=None))

    def wide(self, key: Array) -> Tree:
        """Return parameters of the network with an output for every class, for joint learning."""
        if self.groups is None and self.recipe.source != "characters":
            raise ConfigError("wide: expected a domain with its data, which determine the number of classes.")
        classes = DRAWN_CLASSES["train"][1] if self.groups is None else self.groups.shape[0]
        return replace(self.recipe.network, ways=classes).init(key)

    def narrow(self, theta: Tree) -> Tree:
        """Return the network's parameters with a fresh head for a new task, all zeros."""
        head = jax.eval_shape(self.init, jax.random.key(0))["head"]
        head = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), head)
        return {**self._extras(), **theta, "head": head}

    def joint_loss(self, theta: Tree, batch: Labelled, grouped: bool = False) -> Array:
        """Return the mean cross-entropy over all classes, or over those of an image's own group.

        A group's outputs are then a head of its own on the shared body. Groups are those of the table, such
        as alphabets, and every fifty of the characters drawn on the fly.

        Args:
            theta: Parameters as `wide` returns them.
            batch: Images with the numbers of their classes in the domain.
            grouped: Whether to classify only among the classes of an image's own group.

        Returns:
            A scalar.
        """
        assert batch.classes is not None
        logits = self._in_group(theta, batch) if grouped else self.network.forward(theta, batch.images)[0]
        return cross_entropy(logits, batch.classes)

    def _groups(self, classes: int) -> Array:
        """The number of each class's group, (classes,)."""
        return jnp.arange(classes, dtype=jnp.int32) // 50 if self.groups is None else self.groups

    def _in_group(self, theta: Tree, batch: Labelled) -> Array:
        """Logits of wide parameters, (n, classes), minus infinity outside an image's own group."""
        logits = self.network.forward(theta, batch.images)[0]
        groups = self._groups(logits.shape[1])
        return jnp.where(groups[None] == groups[batch.classes][:, None], logits, -jnp.inf)

    def draw(self, key: Array, split: str) -> Indices:
        """Return the indices of one random episode: distinct classes, distinct images of each.

        Only training tasks are mirrored and distorted; see `FewShotRecipe.protocol` for new ones.
        """
        ids = self.splits[split]
        if not ids.size:
            if split == "validation" and not self.recipe.validation:
                why = "validation=false trains on them. Hint: set --training.validate_every=0"
            else:
                why = (
                    f"all classes of {self.recipe.data} are new. Hint: choose the split test; to learn from "
                    "them use imaml train images"
                )
            raise DataError(f"{split} split: expected classes, got none, as {why}.")
        if self.recipe.protocol == "people" and split != "train":
            place = jax.random.randint(jax.random.fold_in(key, OWN), (), 0, 1 << 30)
            return self.draw_in_turn(key, split, place)
        return draw_training(self, key, ids) if split == "train" else draw_random(self, key, ids)

    def draw_in_turn(self, key: Array, split: str, place: Array) -> Indices:
        """Draw an episode for an evaluation; of "people" each group comes once before one comes twice."""
        if self.recipe.protocol != "people":
            return self.draw(key, split)
        return draw_as_people(self, key, self.splits[split], place)

    def number(self, indices: Indices) -> Array | None:
        """Return the group of an episode's classes; episodes of one group are not independent. See `draw`."""
        if self.recipe.protocol != "people" or self.groups is None:
            return None
        return self.groups[indices.classes[0]]

    def gather(self, indices: Indices) -> Task:
        """Return the episode: a Task of two `Labelled`, class by class in the order of ``classes``."""
        recipe = self.recipe
        # (ways, shots + queries, side, side, channels), in [0, 1]
        if self.pixels is None or self.first is None:
            images = strokes.draws(indices.classes, indices.examples, chunk=16)[..., None]
        else:
            images = self.pixels[self.first[indices.classes][:, None] + indices.examples]
            images = images.astype(jnp.float32) / 255
        images = jax.vmap(turn)(images, indices.turns)
        if indices.maps is not None:
            images = jax.vmap(distortion.warp)(images, indices.maps)
        # the first images of each class are its support set
        shape = (-1, *images.shape[2:])
        labels = jnp.arange(recipe.ways, dtype=jnp.int32)
        support, query = images[:, : recipe.shots].reshape(shape), images[:, recipe.shots :].reshape(shape)
        support_labels, query_labels = (jnp.repeat(labels, n) for n in (recipe.shots, recipe.queries))
        numbers = indices.classes
        return Task(
            Labelled(support, support_labels, None, numbers[support_labels], self._targets(support_labels)),
            Labelled(query, query_labels, support, numbers[query_labels], self._targets(query_labels)),
        )

    def _targets(self, labels: Array) -> Array | None:
        """Labels as unit vectors, where the head is shared."""
        return jax.nn.one_hot(labels, self.recipe.ways) if self.recipe.head == "shared" else None

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return accuracy and mean cross-entropy on the query set, transductive and inductive."""
        query = task.query
        scores = {}
        for suffix, inductive in (("", False), ("_inductive", True)):
            logits = self.logits(phi, query, inductive)
            scores["accuracy" + suffix] = accuracy(logits, query.labels)
            scores["loss" + suffix] = cross_entropy(logits, query.labels)
        return scores

    def calibration(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return what calibration errors are made of, ``(bins, 3)``; see `confidences`."""
        query = task.query
        parts = {"calibration_error": False, "calibration_error_inductive": True}
        return {name: confidences(self.logits(phi, query, way), query.labels) for name, way in parts.items()}

    def trade_off(self, theta: Tree, tasks: int = 1000, seed: int = 0) -> dict[str, object]:
        """Return how well joint learning serves each group of training classes, on random training tasks.

        A prediction is the largest output of an image's own group.

        Args:
            theta: Parameters as `wide` makes them.
            tasks: How many tasks.
            seed: Which tasks.

        Returns:
            The accuracy by group; its least, quartiles and most; and the number of images.
        """
        groups = self._groups(theta["head"]["bias"].shape[0])

        def one(key: Array) -> tuple[Array, Array]:
            task = self.sample(key, "train")
            batch = self.whole(*task)
            logits = self._in_group(theta, batch)
            return groups[batch.classes], jnp.argmax(logits, axis=1) == batch.classes

        keys = jax.random.split(jax.random.key(seed), tasks)
        numbers, right = (np.asarray(a).ravel() for a in jax.jit(lambda k: jax.lax.map(one, k))(keys))
        shares = {int(g): float(right[numbers == g].mean()) for g in np.unique(numbers)}
        quartiles = np.quantile(list(shares.values()), [0, 0.25, 0.5, 0.75, 1]).tolist()
        return {"accuracy": shares, "least_quartiles_most": quartiles, "images": int(right.size)}

    def measure(self, phi: Tree, theta: Tree, batch: Labelled) -> dict[str, Array]:
        """Return the accuracy on a query batch, normalised as in training."""
        return {"accuracy": accuracy(self.logits(phi, batch), batch.labels)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the accuracy of the nearest support image in pixels."""
        support, query = (part.images.reshape(part.images.shape[0], -1) for part in task)
        distances = jnp.square(query[:, None] - support[None]).sum(-1)
        nearest = task.support.labels[jnp.argmin(distances, axis=1)]
        return {"pixel_nearest_neighbour": jnp.mean((nearest == task.query.labels).astype(jnp.float32))}

    def limited(self, split: str, classes: ArrayLike) -> FewShot:
        """Return the same domain with only some of a split's classes.

        The recipe records it: what is trained on a part is resumed and evaluated on that part.

        Args:
            split: The split.
            classes: Their numbers in the table.

        Returns:
            The domain.

        Raises:
            ConfigError: If there are fewer classes than ways, or some that the split has not.
        """
        if split not in self.splits:
            raise ConfigError(not_one_of("limited: split", split, self.splits))
        chosen = np.unique(np.asarray(classes, np.int32))
        unknown = np.setdiff1d(chosen, np.asarray(self.splits[split]))
        if chosen.size < self.recipe.ways or unknown.size:
            raise ConfigError(
                f"limited: expected at least {self.recipe.ways} (the ways) classes of the {split} split, got "
                f"{chosen.size}, of which {unknown.size} are not in it."
            )
        if split == "train" and self.recipe.within:
            ways, hint = self.recipe.in_training(0).ways, "set --domain.within=0"
            require_group(f"within={self.recipe.within!r}", ways, np.asarray(self.groups)[chosen], hint)
        limits = dict(self.recipe.limits) | {split: tuple(chosen.tolist())}
        recipe = replace(self.recipe, limits=tuple(sorted(limits.items())))
        return replace(self, splits={**self.splits, split: jnp.asarray(chosen)}, recipe=recipe)


def table_of(recipe: FewShotRecipe, table: Images) -> FewShot:
    """Return the domain over a table of labelled images.

    Args:
        recipe: The recipe.
        table: The images.

    Returns:
        The domain.

    Raises:
        DataError: If a split has too few classes, a class too few images, or images have another size.
    """
    splits = splits_of(recipe, table)
    expected = (recipe.network.side, recipe.network.side, recipe.network.channels)
    if table.image_shape != expected:
        raise DataError(f"images: expected {expected} for {recipe.source}, got {table.image_shape}.")
    # Compiled code needs static shapes, so classes are padded to the largest; groups become integers.
    most = int(table.count.max())
    names, inverse = np.unique(table.groups, return_inverse=True)
    groups = inverse.astype(np.int32)
    if recipe.within:
        ways, hint = recipe.in_training(0).ways, "set --domain.within=0"
        require_group(f"within={recipe.within!r}", ways, groups[np.asarray(splits["train"])], hint)
    if recipe.protocol == "people":
        hint = "lower the ways, or choose the protocol random"
        for split in ("validation", "test") if recipe.validation else ("test",):
            require_group(f"protocol, {split} split", recipe.ways, groups[np.asarray(splits[split])], hint)
    arrays = [jnp.asarray(array) for array in (table.pixels, table.first, table.count, groups)]
    return FewShot(*arrays, splits=splits, most=most, recipe=recipe, group_names=tuple(names.tolist()))
