"""What is computed: networks, tasks and solvers, the same for all sides. Needs NumPy alone to be read."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Work:
    """One meta-gradient of implicit MAML: so many tasks, steps of gradient descent, products of CG.

    kind: "mlp" (sizes, ReLU, cross-entropy), "sinusoid" (an MLP with half the squared error) or "conv4".
    reference: the work whose error stands for this one's: its tasks are the first of this one's.
    """

    kind: str
    tasks: int
    sizes: tuple[int, ...] = ()
    ways: int = 5
    shots: int = 1
    queries: int = 5
    steps: int = 16
    cg: int = 5
    rate: float = 0.1
    strength: float = 2.0
    dtype: str = "float32"
    title: str = ""
    small: bool = False
    reference: str | None = None


CONV = {"kind": "conv4", "rate": 0.2, "strength": 0.5}
WORKS = {
    "a": Work("mlp", 4, (16, 24, 5), shots=5, dtype="float64", title="MLP 16-24-5, float64", small=True),
    "b": Work("sinusoid", 25, (1, 40, 40, 1), rate=0.001, strength=10.0, title="sinusoid MLP", small=True),
    "c-4": Work(**CONV, tasks=4, title="Conv4 5-way 1-shot"),
    "c-16": Work(**CONV, tasks=16, title="Conv4 5-way 1-shot", reference="c-4"),
    "c-32": Work(**CONV, tasks=32, title="Conv4 5-way 1-shot", reference="c-4"),
    "d-2": Work(**CONV, tasks=2, ways=20, shots=5, title="Conv4 20-way 5-shot"),
    "d-16": Work(**CONV, tasks=16, ways=20, shots=5, title="Conv4 20-way 5-shot", reference="d-2"),
    "e": Work("mlp", 10, (784, 784, 512, 10), ways=10, shots=5, title="MLP 784-784-512-10, 1M parameters"),
}
PARTS = ("support", "query")


@dataclass(frozen=True)
class Arrays:
    """theta by name ("layer/leaf", in the order of the vectors), and the tasks' x and y by part."""

    theta: dict[str, np.ndarray]
    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]

    def nested(self, convert):
        """theta as {layer: {leaf: convert(array)}}."""
        tree = {}
        for name, value in self.theta.items():
            layer, leaf = name.split("/")
            tree.setdefault(layer, {})[leaf] = convert(value)
        return tree

    def vector(self, tree):
        """A tree like `nested` gives as one vector."""
        return np.concatenate(
            [np.asarray(tree[layer][leaf]).ravel() for layer, leaf in (n.split("/") for n in self.theta)]
        )


def read(folder):
    """The Arrays that `make` wrote."""
    data = np.load(Path(folder) / "work.npz")
    theta = {name[6:]: data[name] for name in data.files if name.startswith("theta/")}
    x, y = ({part: data[f"{part}/{c}"] for part in PARTS} for c in "xy")
    return Arrays(theta, x, y)


def make(work, folder):
    """Writes a work's initial parameters and tasks to folder/work.npz. Needs imaml."""
    import jax

    import imaml
    from imaml.domains.networks import MLP

    if work.kind == "mlp":
        theta = MLP(work.sizes).init(jax.random.key(1))
        x, y = _clusters(work)
    else:
        shape = {"ways": work.ways, "shots": work.shots, "queries": work.queries}
        images = functools.partial(imaml.characters, **shape, normalisation="transductive")
        domain = imaml.sinusoid() if work.kind == "sinusoid" else images()
        theta = domain.init(jax.random.key(1))
        if "head" in theta:  # a head of zeros would make the first step trivial
            kernel = theta["head"]["kernel"]
            theta["head"]["kernel"] = 0.05 * jax.random.normal(jax.random.key(2), kernel.shape)
        keys = jax.random.split(jax.random.key(3), 32)[: work.tasks]
        tasks = jax.vmap(lambda key: domain.sample(key, "train"))(keys)
        x, y = ({part: np.asarray(getattr(tasks, part)[i]) for part in PARTS} for i in (0, 1))
    arrays = {f"theta/{layer}/{leaf}": v for layer, module in theta.items() for leaf, v in module.items()}
    for part in PARTS:
        arrays[f"{part}/x"], arrays[f"{part}/y"] = x[part], y[part]
    real = {name: np.asarray(v) for name, v in arrays.items()}
    real = {n: v.astype(work.dtype) if v.dtype.kind == "f" else v.astype(np.int32) for n, v in real.items()}
    np.savez(Path(folder) / "work.npz", **real)


def _clusters(work):
    """Tasks of labelled points around a random centre for each class, as far apart as they are wide."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(work.tasks, work.ways, 1, work.sizes[0]))
    x, y = {}, {}
    for part, each in zip(PARTS, (work.shots, work.queries), strict=True):
        points = centres + draw.normal(size=(work.tasks, work.ways, each, work.sizes[0]))
        x[part] = points.reshape(work.tasks, -1, work.sizes[0])
        y[part] = np.tile(np.repeat(np.arange(work.ways), each), (work.tasks, 1))
    return x, y
