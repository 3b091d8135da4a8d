"""Programs in a file that a process without this package can run: with JAX, NumPy and flatbuffers."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.errors import ArtefactError, ConfigError
from ..core.recipes import JsonObject
from ..core.tree import Tree
from .atomic import write_whole

LOADER = Path(__file__).with_name("standalone.txt")  # a program without this package, so no module of it


def write_standalone(
    path: Path,
    about: JsonObject,
    arrays: Mapping[str, Tree],
    programs: Mapping[str, tuple[Callable[..., Tree], tuple[Tree, ...]]],
    platforms: Sequence[str] = (),
) -> None:
    """Write programs, what they are given, and beside the file `imaml_standalone.py`, which runs them.

    Args:
        path: The file, a zip archive.
        about: What the loader must know, JSON.
        arrays: Trees by name.
        programs: Functions by name, each with examples of its arguments. In the file each argument is the
            list of its tree's leaves, and so is the result; real numbers are float32.
        platforms: Where they will run; by default the platform of this process.

    Raises:
        ArtefactError: If it cannot be written.
        ConfigError: If the package flatbuffers is missing.
    """
    leaves = {name: jax.tree.leaves(tree) for name, tree in arrays.items()}
    packed, saved = io.BytesIO(), io.BytesIO()
    named = {
        f"{name}-{i}": np.asarray(leaf) for name, every in leaves.items() for i, leaf in enumerate(every)
    }
    np.savez(saved, **named)  # type: ignore[arg-type]
    counts = {name: len(every) for name, every in leaves.items()}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as held:
        held.writestr("about.json", json.dumps({**about, "arrays": counts}))
        held.writestr("arrays.npz", saved.getvalue())
        for name, (function, arguments) in programs.items():
            held.writestr(f"{name}.stablehlo", _exported(function, arguments, platforms))
    try:
        write_whole(path, packed.getvalue())
        write_whole(path.with_name("imaml_standalone.py"), LOADER.read_text())
    except OSError as error:
        raise ArtefactError(
            f"{path}: expected a file that can be written, got an error ({error})."
        ) from error


def _exported(function: Callable[..., Tree], arguments: tuple[Tree, ...], platforms: Sequence[str]) -> bytes:
    """The function as StableHLO, of lists of leaves."""
    flat, trees = zip(*map(jax.tree.flatten, arguments), strict=True)

    def listed(*every: list[Array]) -> list[Array]:
        given = [tree.unflatten(leaves) for tree, leaves in zip(trees, every, strict=True)]
        return [narrow(leaf) for leaf in jax.tree.leaves(function(*given))]

    def narrow(leaf: Array) -> Array:
        return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), flat)
    made = jax.export.export(jax.jit(listed), platforms=platforms or None)(*shapes)
    try:
        return bytes(made.serialize())
    except ImportError as error:
        raise ConfigError(
            "export: expected flatbuffers, which jax.export writes with, got no such package. Hint: pip "
            "install 'imaml[export]'; the process that loads the file needs flatbuffers, too."
        ) from error
