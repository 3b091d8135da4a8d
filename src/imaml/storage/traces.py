"""Traced programs kept on disk beside the compiled ones, so that the next process need not trace them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from jax import export
from jax.core import Tracer
from jax.stages import Wrapped

from ..core.compile import whole_program
from ..core.solution import Solution, Stats, Status
from ..core.tree import Tree
from ..core.version import installed_versions
from .atomic import write_whole
from .programs import kept_folder

R = TypeVar("R")

for _kind in (Solution, Stats, Status):
    export.register_pytree_node_serialization(
        _kind,
        serialized_name=f"imaml.{_kind.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )


def prepare() -> None:
    """Do what JAX does once in a process before it calls a kept trace, if traces are kept.

    It takes longer than the first answer of a small model. The caller of `imaml.load` expects to wait.
    """
    if kept_folder() is not None:
        importlib.import_module("scipy.linalg")  # JAX registers LAPACK's routines from it
        _source()
        whole_program(abs)  # it tries compiler options
        with contextlib.suppress(ImportError):
            importlib.import_module("jax._src.export.serialization")


@dataclass(eq=False)
class KeptProgram(Generic[R]):
    """A function that is compiled, and whose trace is kept where `keep_programs` keeps what was compiled.

    Compiling is most of the first process's time, and tracing of the others'. A trace is StableHLO
    (`jax.export`). Its file is named after all that the function depends on: `about`, the arguments' shapes,
    the source of this package, the versions, and JAX's settings.

    Args:
        function: The function, of trees of arrays.
        about: A text that says which function it is, the same in every process; None if no text can, as the
            function calls code that is not of this package. It is then traced in each process.
        compiled: What marks a function for compilation.

    Example:
        >>> int(KeptProgram(lambda x: 2 * x, about="twice")(3))
        6
    """

    function: Callable[..., R]
    about: str | None
    compiled: Callable[[Callable], Wrapped] = whole_program

    def __post_init__(self) -> None:
        """Mark the function for compilation."""
        self.plain = self.compiled(self.function)
        self.known: dict[object, Wrapped | None] = {}

    def __call__(self, *arguments: Tree) -> R:
        """Call the function, by its kept trace if there is one."""
        folder = kept_folder() if self.about is not None else None
        leaves, form = jax.tree.flatten(arguments)
        if folder is None or any(isinstance(leaf, Tracer) for leaf in leaves) or _elsewhere(leaves):
            return self.plain(*arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in map(jax.typeof, leaves))
        key = folder, form, shapes, _settings()
        if key not in self.known:
            self.known[key] = self._kept(*key)
        program = self.known[key]
        return self.plain(*arguments) if program is None else program(*leaves)

    def _kept(self, folder: Path, form: Any, shapes: tuple, settings: tuple) -> Wrapped | None:
        """The program of these shapes, from a file or traced and written; None if it has no such form."""
        versions = installed_versions("jax", "jaxlib")
        said = f"{self.about}\n{form}\n{shapes}\n{settings} {versions} {jax.default_backend()} {_source()}"
        file = folder / f"trace-{hashlib.sha256(said.encode()).hexdigest()}"
        content = _whole(file)
        with contextlib.suppress(ImportError):  # flatbuffers, which JAX reads and writes traces with
            if content is not None:
                return self.compiled(export.deserialize(content).call)
        like = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
        try:
            made = export.export(jax.jit(lambda *leaves: self.function(*form.unflatten(leaves))))(*like)
            content = made.serialize()
        except (ValueError, NotImplementedError, ImportError):
            return None
        with contextlib.suppress(OSError):
            write_whole(file, hashlib.sha256(content).digest() + content)
        return self.compiled(made.call)


def _whole(file: Path) -> bytearray | None:
    """A trace as it was written; None if there is none, or a damaged one."""
    try:
        content = bytearray(file.read_bytes())
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _elsewhere(leaves: list) -> bool:
    """Whether the program would run on another platform than JAX's default, which traces are made for."""
    device, usual = getattr(jax.config, "jax_default_device"), jax.default_backend()  # noqa: B009
    if device is not None and getattr(device, "platform", device) != usual:
        return True
    return any(
        one.platform != usual for leaf in leaves if isinstance(leaf, jax.Array) for one in leaf.devices()
    )


def _settings() -> tuple:
    """The settings of JAX that a trace depends on."""
    names = (
        "jax_enable_x64",
        "jax_default_matmul_precision",
        "jax_numpy_rank_promotion",
        "jax_default_prng_impl",
        "jax_threefry_partitionable",
    )
    return tuple(getattr(jax.config, name) for name in names)


@functools.cache
def _source() -> str:
    """A digest of this package's source: a trace of other code is another trace."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()
