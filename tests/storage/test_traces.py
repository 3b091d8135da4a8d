"""Traces that are kept: the next process uses them, and never for another function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.config.method import IMAMLRecipe
from imaml.core.compile import whole_program
from imaml.core.recipes import recipe, text_of
from imaml.core.solution import Solution, Stats, Status
from imaml.domains.tasks.build import domain_of
from imaml.linear.cg import CG
from imaml.storage import programs, traces
from imaml.storage.traces import KeptProgram


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_kept", [tmp_path])
    return tmp_path


def twice(x):
    return {"twice": 2 * x["x"]}


def never(x):
    raise AssertionError("traced again")


def files(folder):
    return list(folder.glob("trace-*"))


X = {"x": np.arange(3.0)}


def test_the_next_process_does_not_trace(folder):
    first = KeptProgram(twice, "twice")(X)
    assert len(files(folder)) == 1
    found = KeptProgram(never, "twice")(X)  # what another process has: the same text, and nothing in memory
    np.testing.assert_array_equal(found["twice"], first["twice"])
    np.testing.assert_array_equal(found["twice"], [0, 2, 4])


def test_solutions_are_kept(folder):
    def solve(x):
        return Solution(
            2 * x,
            Stats(steps=jnp.int32(1), residual=jnp.sum(x), negative_curvature=jnp.bool_(False)),
            Status(jnp.int8(0)),
        )

    KeptProgram(solve, "solve")(X["x"])
    found = KeptProgram(never, "solve")(X["x"])
    assert jax.tree.structure(found) == jax.tree.structure(jax.eval_shape(solve, X["x"]))
    assert found.status.code == 0


OTHERS = {
    "another function": ("thrice", X, {}),
    "another shape": ("twice", {"x": np.arange(4.0)}, {}),
    "another dtype": ("twice", {"x": np.arange(3)}, {}),
    "another tree": ("twice", {"x": np.arange(3.0), "y": np.arange(3.0)}, {}),
    "other source": ("twice", X, {"_source": lambda: "other"}),
    "other versions": ("twice", X, {"installed_versions": lambda *_: "other"}),
    "other settings": ("twice", X, {"_settings": lambda: ("other",)}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_trace_serves_its_function_and_shapes_alone(folder, monkeypatch, case):
    KeptProgram(twice, "twice")(X)
    about, given, changed = OTHERS[case]
    for name, value in changed.items():
        monkeypatch.setattr(traces, name, value)
    with pytest.raises(AssertionError, match="traced again"):
        KeptProgram(never, about)(given)


@pytest.mark.parametrize("content", [b"", b"hello", "half"])
def test_a_damaged_trace_is_written_again(folder, content):
    KeptProgram(twice, "twice")(X)
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    np.testing.assert_array_equal(KeptProgram(twice, "twice")(X)["twice"], [0, 2, 4])
    assert len(file.read_bytes()) == len(whole)


def test_nothing_is_kept_unless_asked(folder, monkeypatch):
    KeptProgram(twice, None)(X)
    jax.jit(KeptProgram(twice, "twice", jax.jit))(X)  # as a part of another program
    monkeypatch.setattr(programs, "_kept", [])
    KeptProgram(twice, "twice")(X)
    assert not files(folder)


def test_a_function_that_has_no_such_form_is_compiled(folder):
    assert KeptProgram(lambda x: jax.pure_callback(lambda y: y, x, x), "callback", whole_program)(1.0) == 1.0
    assert not files(folder)


@recipe()
class OfAnotherModule(CG):
    pass


@pytest.mark.usefixtures("ranks_mixed")
def test_only_recipes_of_this_package_have_a_text():
    assert text_of(IMAMLRecipe(), CG(steps=3)) == text_of(IMAMLRecipe(), CG(steps=3))
    assert text_of(CG(steps=3)) != text_of(CG(steps=4))
    assert text_of(IMAMLRecipe(linear=OfAnotherModule(steps=3))) is None
    assert text_of(Status(jnp.int8(0))) is None  # no recipe
    tasks = imaml.Tasks.from_list([(np.arange(4.0), np.arange(4.0)) for _ in range(10)])
    model = (lambda key: {"w": jnp.ones((1, 1))}, lambda w, x: x @ w["w"])
    for own in ({"model": model}, {"model": "linear", "loss": lambda o, y: (o[:, 0] - y[:, 0]) ** 2}):
        assert text_of(domain_of(tasks, **own)[0].recipe) is None
    assert text_of(domain_of(tasks)[0].recipe)


def test_on_another_platform_than_the_default_nothing_is_kept(folder, monkeypatch):
    monkeypatch.setattr(traces.jax, "default_backend", lambda: "tpu")
    found = KeptProgram(twice, "twice")({"x": jnp.arange(3.0)})
    np.testing.assert_array_equal(found["twice"], [0, 2, 4])
    assert not files(folder)
