"""Checkpoints and artefacts: nothing half-written or damaged is ever taken for whole; everything is exact."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imaml.core.errors import ArtefactError, CheckpointError, ConfigError
from imaml.storage import checkpoint, integrity
from imaml.storage.artefact import read_artefact, write_artefact
from imaml.storage.checkpoint import Checkpoints
from imaml.storage.integrity import flatten_names, unflatten_names


@jax.tree_util.register_dataclass
@dataclass
class Record:
    weight: Any
    bias: Any


class Pair(NamedTuple):
    count: Any
    moment: Any


ODD_FLOATS = np.array([0x7FC00123, 0xFF800001, 0x80000000, 0x00000001, 0x7F800000], np.uint32).view(
    np.float32
)
LEAVES = {
    "float32 with NaN payloads": ODD_FLOATS,
    "float64": np.array([np.pi, -0.0, np.nan, 5e-324]),
    "bfloat16": np.array([1.5, -0.0, np.nan], jnp.bfloat16),
    "float16": np.array([[1.5, -0.0]], np.float16),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "int64": np.array([-(2**63)], np.int64),
    "bool": np.array([True, False]),
    "complex64": np.array([1 - 2j], np.complex64),
    "scalar": np.array(-0.0, np.float32),
    "NumPy scalar": np.float64(0.1),
    "scalar bool": np.array(True),
    "all minus zero": np.full((100,), -0.0, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
    "jax": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
    "jax bfloat16": jnp.asarray(1.5, jnp.bfloat16),
}


def bits(array: Any) -> tuple[Any, ...]:
    return np.asarray(array).dtype, np.shape(array), np.asarray(array).tobytes()


def state_of(step: int) -> dict[str, Any]:
    return {
        "theta": {"conv1": Record(np.full((3, 2), step, np.float32), np.full(2, -step, np.float64))},
        "optimiser": (Pair(np.array(step, np.int32), [np.arange(4, dtype=np.float32) * step]), None),
    }


def same(left: Any, right: Any) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(bits(a) == bits(b) for a, b in pairs)


def named(checkpoints: Checkpoints, step: int) -> Path:
    """The file of a step's checkpoint."""
    return checkpoints.folder / f"step-{step:08d}.checkpoint"


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as if the disk were full."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, state_of(step), {"best": step / 100})
    return checkpoints


# -- training state ---------------------------------------------------------------------------------------


def test_every_dtype_returns_bit_for_bit_and_of_its_kind(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, LEAVES)
    state = checkpoints.restore(LEAVES).state
    for key, array in LEAVES.items():
        assert bits(state[key]) == bits(array), key
        assert isinstance(state[key], jax.Array) == isinstance(array, jax.Array), key
    shapes = {key: jax.ShapeDtypeStruct(np.shape(a), a.dtype) for key, a in LEAVES.items()}
    for key, array in checkpoints.restore(shapes).state.items():
        assert bits(array) == bits(LEAVES[key]), key
    assert not checkpoints.restore({**LEAVES}).state["jax"].committed


@pytest.mark.parametrize(
    "state", [{}, {"a": np.zeros((0, 2))}, np.arange(3)], ids=["none", "empty", "one leaf"]
)
def test_small_states(state: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    assert same(checkpoints.restore(state).state, state)


def test_placement_follows_the_template(tmp_path: Path) -> None:
    device = jax.devices()[-1]
    state = {"a": jax.device_put(jnp.arange(4.0), device)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    assert checkpoints.restore(state).state["a"].sharding == state["a"].sharding


def test_structure_note_and_step_return(saved: Checkpoints) -> None:
    restored = saved.restore(state_of(0))
    assert same(restored.state, state_of(20))
    assert (restored.step, restored.note, restored.skipped) == (20, {"best": 0.2}, [])


def test_a_note_may_hold_infinity(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1), {"best": -np.inf})
    assert checkpoints.restore(state_of(1)).note == {"best": -np.inf}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (1, 5, 7, 100_000_000):
        checkpoints.save(step, state_of(step))
    assert checkpoints.steps() == [1, 5, 7, 100_000_000][-keep:]
    assert checkpoints.restore(state_of(0)).step == 100_000_000
    assert len(list(tmp_path.iterdir())) == keep


def test_a_step_saved_again_is_replaced(saved: Checkpoints) -> None:
    saved.save(20, state_of(21))
    assert saved.steps() == [10, 20]
    assert same(saved.restore(state_of(0)).state, state_of(21))


def test_leftovers_of_a_killed_process(saved: Checkpoints) -> None:
    folder = saved.folder
    whole = named(saved, 20).read_bytes()
    for step, length in ((20, len(whole)), (30, 100)):  # killed before the file had its name
        (folder / f".{named(saved, step).name}.4711.writing").write_bytes(whole[:length])
    assert saved.steps() == [10, 20]
    assert saved.restore(state_of(0)).step == 20
    saved.save(40, state_of(40))
    assert sorted(folder.iterdir()) == [named(saved, step) for step in (10, 20, 40)]


def test_leftovers_are_deleted_first_as_the_disk_may_be_full_of_them(saved: Checkpoints) -> None:
    leftover = saved.folder / f".{named(saved, 30).name}.4711.writing"
    leftover.write_bytes(b"half a file")
    with limited(100), pytest.raises(CheckpointError):
        saved.save(30, state_of(30))
    assert not leftover.exists()


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_every_flipped_bit_and_truncation_falls_back(saved: Checkpoints) -> None:
    chance = random.Random(0)
    path = named(saved, 20)
    whole = path.read_bytes()
    for kind in ["flip"] * 200 + ["cut"] * 50:
        if kind == "flip":
            flip(path, chance)
        else:
            path.write_bytes(whole[: chance.randrange(len(whole))])
        restored = saved.restore(state_of(0))
        assert restored.step == 10, kind
        assert same(restored.state, state_of(10)), kind
        assert ["step 20" in sentence for sentence in restored.skipped] == [True], kind
        path.write_bytes(whole)
    assert saved.restore(state_of(0)).step == 20


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "it is truncated within its header"),
    "more than its own": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "not fully covered"),
    "a folder": (a_folder, "Is a directory"),
    "a text": (lambda path: path.write_text("this is no tensor file at all"), "a file of another format"),
    "of others": (
        lambda path: path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)})),
        "a safetensors file of another program",
    ),
    "an artefact": (lambda path: write_artefact(path, {"a": np.zeros(2)}, {}), "step None"),
    "renamed": (lambda path: path.rename(path.with_name("step-00000021.checkpoint")), "step 20"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_and_the_one_before_used(damage: str, saved: Checkpoints) -> None:
    do, words = DAMAGES[damage]
    do(named(saved, 20))
    restored = saved.restore(state_of(0))
    assert restored.step == 10
    assert len(restored.skipped) == 1
    assert words in restored.skipped[0]


def test_a_checkpoint_of_another_format_or_array_is_refused(saved: Checkpoints) -> None:
    arrays = integrity.on_host(state_of(20), CheckpointError)
    for change, words in [({"format": 2}, "format 2"), ({"arrays": "0"}, "arrays")]:
        named(saved, 20).write_bytes(resealed({"step": 20, "note": {}, **change}, arrays))
        assert words in saved.restore(state_of(0)).skipped[0]


def test_all_damaged_lists_each_with_its_reason(saved: Checkpoints) -> None:
    named(saved, 10).write_bytes(b"")
    flip(named(saved, 20), random.Random(1))
    with pytest.raises(CheckpointError) as caught:
        saved.restore(state_of(0))
    message = str(caught.value)
    assert "step 10" in message
    assert "step 20" in message
    assert "begin a new run" in message
    assert "\n" not in message


def changed(key: str, value: Any) -> dict[str, Any]:
    state = state_of(0)
    setattr(state["theta"]["conv1"], key, value)
    return state


MISMATCHES = {
    "shape": (
        changed("weight", np.zeros((5, 2), np.float32)),
        "theta/conv1/weight: expected float32[5, 2], got float32[3, 2]",
    ),
    "dtype": (
        changed("bias", np.zeros(2, np.float32)),
        "theta/conv1/bias: expected float32[2], got float64[2]",
    ),
    "missing": (
        changed("bias", {"a": np.zeros(2)}),
        "theta/conv1/bias/a: expected float64[2], got nothing",
    ),
    "unexpected": ({"theta": state_of(0)["theta"]}, "optimiser/0/count: expected nothing, got int32[]"),
    "many": ({f"w{i}": np.zeros(2) for i in range(9)}, "and 9 more"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_another_tree_is_refused(mismatch: str, saved: Checkpoints) -> None:
    like, words = MISMATCHES[mismatch]
    with pytest.raises(CheckpointError) as caught:
        saved.restore(like)
    assert words in str(caught.value)
    assert "use the configuration that it was saved with" in str(caught.value)


REFUSED_STATES = {
    "number": ({"a": 1.0}, "a: expected an array or a registered record, got a float"),
    "random key": ({"key": jax.random.key(0)}, "jax.random.key_data"),
    "text": ({"a": np.array(["x"])}, "got <U1"),
    "big-endian": ({"a": np.zeros(2, ">f4")}, "got >f4"),
    "same names": (
        {"a/b": np.zeros(1), "a": {"b": np.zeros(1)}},
        "a/b: expected a name of its own for each array, got one that is taken. Hint: keep",
    ),
}


@pytest.mark.parametrize("case", REFUSED_STATES)
def test_states_that_are_refused(case: str, tmp_path: Path) -> None:
    state, words = REFUSED_STATES[case]
    with pytest.raises(CheckpointError, match=words.replace("(", r"\(")):
        Checkpoints(tmp_path).save(1, state)
    assert list(tmp_path.iterdir()) == []


def test_other_arguments_that_are_refused(tmp_path: Path) -> None:
    for keep in (0, 1.5, True):
        with pytest.raises(ConfigError, match="keep"):
            Checkpoints(tmp_path, keep)  # type: ignore[arg-type]
    for step in (-1, True, 1.0):
        with pytest.raises(CheckpointError, match="step"):
            Checkpoints(tmp_path).save(step, state_of(0))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="JSON"):
        Checkpoints(tmp_path).save(1, state_of(0), {"a": {1, 2}})
    assert list(tmp_path.iterdir()) == []
    for folder in (tmp_path, tmp_path / "none"):
        assert Checkpoints(folder).steps() == []
        with pytest.raises(
            CheckpointError, match=r"expected a checkpoint, got none\. Hint: restore a copy of that"
        ):
            Checkpoints(folder).restore(state_of(0))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        with pytest.raises(CheckpointError, match=r"is a file, not a folder|Not a directory"):
            Checkpoints(folder).save(1, state_of(1))
        with pytest.raises(ArtefactError, match=r"is a file, not a folder|Not a directory"):
            write_artefact(folder / "a.safetensors", {}, {})


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_leaves_the_older_ones(limit: int, saved: Checkpoints, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random(100_000)  # not to be compressed
    with limited(limit):
        with pytest.raises(CheckpointError, match="expected a place that can be written, got an error"):
            saved.save(30, {"noise": noise})
        with pytest.raises(ArtefactError, match="expected a place that can be written, got an error"):
            write_artefact(tmp_path / "a.safetensors", {"noise": noise}, {})
    assert saved.steps() == [10, 20]
    assert len(list(saved.folder.iterdir())) == 2
    assert not list(tmp_path.glob("*a.safetensors*"))
    assert saved.restore(state_of(0)).step == 20


# One process imports everything and saves nothing, then forks a child for each round: imports take seconds.
LOOP = """
import os, sys
import numpy as np
from imaml.storage.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], 2)
state = lambda step: {"a": np.full((50, 50), step, np.float32), "b": np.array(step, np.int32)}
while sys.stdin.readline():
    if child := os.fork():
        print("child", child, flush=True)
        print("ended", os.waitpid(child, 0)[1], flush=True)
        continue
    step = checkpoints.restore(state(0)).step if checkpoints.steps() else 0
    while True:
        step += 1
        checkpoints.save(step, state(step), {"step": step})
        os.write(1, b"step %d\\n" % step)
"""


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    chance = random.Random(0)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    like = {"a": np.zeros((50, 50), np.float32), "b": np.zeros((), np.int32)}
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LOOP, str(checkpoints.folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    reached = 0
    try:
        for _ in range(10):
            process.stdin.write("go\n")
            process.stdin.flush()
            told: dict[str, list[int]] = {"child": [], "step": [], "ended": []}
            while not told["ended"]:
                word, number = process.stdout.readline().split()
                told[word].append(int(number))
                if word == "step" and len(told["step"]) == 1:
                    time.sleep(chance.uniform(0.0, 0.15))
                    os.kill(told["child"][0], signal.SIGKILL)
            assert told["ended"] == [signal.SIGKILL]
            restored = checkpoints.restore(like)
            assert told["step"][0] == reached + 1
            assert restored.skipped == []
            assert restored.step in (told["step"][-1], told["step"][-1] + 1)  # saved, but not yet told
            assert same(restored.state, {k: np.full_like(a, restored.step) for k, a in like.items()})
            assert restored.note == {"step": restored.step}
            reached = restored.step
    finally:
        process.kill()
        process.communicate()


def test_a_megabyte_is_saved_quickly_and_silently(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    state = {f"w{i}": np.random.default_rng(i).random((64, 64), np.float32) for i in range(64)}
    checkpoints.save(0, state)
    times = []
    for step in range(1, 4):
        begin = time.perf_counter()
        checkpoints.save(step, state)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.5
    assert capfd.readouterr() == ("", "")


# -- the artefact -----------------------------------------------------------------------------------------

ARRAYS = {key: a for key, a in LEAVES.items() if np.isfinite(np.asarray(a)).all()}
DESCRIPTION = {"config": {"ways": 5, "name": 'Zeichen é " \\'}, "notes": ["a", None, 1.5]}


def test_an_artefact_returns_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "artefact.safetensors"
    write_artefact(path, ARRAYS, DESCRIPTION)
    for place in (path, str(path), path.parent):
        arrays, description = read_artefact(place)
        assert description == DESCRIPTION
        assert arrays.keys() == ARRAYS.keys()
        assert all(bits(arrays[key]) == bits(ARRAYS[key]) for key in ARRAYS)
    write_artefact(path.parent, {"a": np.zeros(1)}, {})
    assert list(read_artefact(path)[0]) == ["a"]
    assert [p.name for p in path.parent.iterdir()] == ["artefact.safetensors"]


def test_flipped_bits_and_every_length_of_an_artefact(tmp_path: Path) -> None:
    path = tmp_path / "artefact.safetensors"
    write_artefact(path, {"a": np.arange(3, dtype=np.int32), "b": np.array(True)}, DESCRIPTION)
    whole = path.read_bytes()
    everywhere = range(8 * len(whole))
    for position in [*everywhere[:128], *random.Random(0).sample(everywhere, 500)]:
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(ArtefactError):
            read_artefact(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match=r"got a damaged one: |got a file of another format"):
            read_artefact(path)
    path.write_bytes(whole)
    read_artefact(path)


def resealed(change: dict[str, Any], arrays: dict[str, Any], described: bool = True) -> bytes:
    record = {"format": 1, "arrays": integrity.digest_all(arrays), **change}
    record |= {"description": {}} if described else {}
    return safetensors.numpy.save(arrays, {"imaml": integrity.sealed(record, ArtefactError).decode()})


NO_ARTEFACTS = {
    "text": (
        b"this is no tensor file at all",
        r"^\S+x\.safetensors: expected an artefact of imaml, got a file of another format\. "
        r"Hint: name the artefact\.safetensors of a run\.$",
    ),
    "a pickle": (
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins",
        "got a file of another format",
    ),
    "empty": (b"", "truncated"),
    "of others": (
        safetensors.numpy.save({"a": np.zeros(2)}),
        r"^\S+x\.safetensors: expected an artefact of imaml, got a safetensors file of another program\. "
        r"Hint: name the artefact\.safetensors of a run\.$",
    ),
    "of others with notes": (
        safetensors.numpy.save({"a": np.zeros(2)}, {"x": "y"}),
        "safetensors file of another program",
    ),
    "no JSON": (safetensors.numpy.save({"a": np.zeros(2)}, {"imaml": "[" * 9999}), "got a damaged one: its"),
    "a checkpoint": (
        resealed({"step": 1, "note": {}}, {"a": np.zeros(2)}, described=False),
        "expected an artefact of imaml, got a checkpoint",
    ),
    "newer": (resealed({"format": 2}, {"a": np.zeros(2)}), "expected format 1, got 2. Hint: upgrade imaml"),
    "not finite": (
        resealed({}, {"a": np.array([1.0, np.nan])}),
        "expected finite parameters, got NaN or infinity in a",
    ),
    "odd dtype": (resealed({}, {"a": np.zeros(2, jnp.float8_e4m3fn)}), "F8_E4M3"),
}


@pytest.mark.parametrize("case", NO_ARTEFACTS)
def test_files_that_are_no_artefact(case: str, tmp_path: Path) -> None:
    data, words = NO_ARTEFACTS[case]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match=words) as caught:
        read_artefact(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_artefact_says_what_is_there(tmp_path: Path) -> None:
    """What is in the folder is listed; what is beside it is offered only if it is spelt alike."""

    def told(name: str) -> str:
        with pytest.raises(ArtefactError) as caught:
            read_artefact(tmp_path / name)
        what, _, rest = str(caught.value).partition(
            ": expected a run directory or an artefact (*.safetensors), "
        )
        assert what == str(tmp_path / name)
        return rest.replace(str(tmp_path), "HERE")

    (tmp_path / "other.safetensors").write_text("")
    makes = "Hint: imaml train --out DIR makes one."
    assert told("otter.safetensors") == "got no such file or folder. Hint: did you mean 'other.safetensors'?"
    assert told("nothing.safetensors") == f"got no such file or folder. {makes}"
    assert told("none/x") == f"got no such file or folder. {makes}"
    (tmp_path / "begun").mkdir()
    assert told("begun") == f"got an empty folder. {makes}"
    (tmp_path / "begun" / "notes.txt").write_text("")
    assert told("begun") == f"got a folder without one. {makes}"
    (tmp_path / "begun" / "config.json").write_text("{}")
    resume = "Hint: the run has not ended; continue it with imaml train --resume --out HERE/begun."
    assert told("begun") == f"got a run without an artefact. {resume}"
    for name in (
        "a.safetensors",
        "run/artefact.safetensors",
        "comparison/maml/seed-0/run/artefact.safetensors",
    ):
        (tmp_path / "shelf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shelf" / name).write_text("")
    inside = "HERE/shelf/a.safetensors, HERE/shelf/run"
    assert told("shelf") == f"got a folder that holds some. Hint: name what is in it: {inside}."
    (tmp_path / "shelf" / "comparison" / "comparison.json").write_text("{}")
    runs = "Hint: name one of its runs: HERE/shelf/comparison/maml/seed-0/run."
    assert told("shelf/comparison") == f"got a comparison. {runs}"


REFUSED_ARTEFACTS = {
    "NaN": (
        {"w": np.array([np.nan])},
        {},
        r"^\S+a\.safetensors: expected finite parameters, got NaN or infinity in w\. Hint: train at a lower",
    ),
    "infinity": ({"w": jnp.asarray([jnp.inf], jnp.bfloat16)}, {}, "NaN or infinity in w"),
    "dtype": ({"w": np.array([None])}, {}, "expected one of the dtypes.*got object"),
    "name": ({"__metadata__": np.zeros(1)}, {}, "__metadata__"),
    "description": ({}, {"f": len}, "JSON"),
    "strict JSON": ({}, {"loss": np.inf}, "JSON"),
}


@pytest.mark.parametrize("case", REFUSED_ARTEFACTS)
def test_what_is_not_written(case: str, tmp_path: Path) -> None:
    arrays, description, words = REFUSED_ARTEFACTS[case]
    with pytest.raises(ArtefactError, match=words):
        write_artefact(tmp_path / "a.safetensors", arrays, description)
    assert list(tmp_path.iterdir()) == []


def test_names_and_back() -> None:
    tree = {"conv1": Record(np.zeros((3, 2)), np.zeros(2)), "rest": [Pair(np.array(1), (np.ones(1),)), None]}
    names = flatten_names(tree)
    assert list(names) == ["conv1/weight", "conv1/bias", "rest/0/count", "rest/0/moment/0"]
    assert same(unflatten_names(tree, names), tree)
    shapes = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    assert same(unflatten_names(shapes, {"a": np.ones(2, np.float32)}), {"a": np.ones(2, np.float32)})
    assert list(flatten_names(np.ones(2))) == ["value"]


WRONG_ARRAYS = {
    "missing": ({"a": np.zeros(2)}, "b: expected float64[3, 1], got nothing"),
    "unexpected": (
        {"a": np.zeros(2), "b": np.zeros((3, 1)), "c": np.zeros(())},
        "c: expected nothing, got float64[]",
    ),
    "shape": ({"a": np.zeros(2), "b": np.zeros((1, 3))}, "b: expected float64[3, 1], got float64[1, 3]"),
    "dtype": ({"a": np.zeros(2, np.int8), "b": np.zeros((3, 1))}, "a: expected float64[2], got int8[2]"),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_arrays_of_another_model(case: str) -> None:
    arrays, words = WRONG_ARRAYS[case]
    with pytest.raises(ArtefactError) as caught:
        unflatten_names({"a": np.zeros(2), "b": np.zeros((3, 1))}, arrays)
    assert words in str(caught.value)
    with pytest.raises(ArtefactError, match="got a float"):
        flatten_names({"a": 1.0})
