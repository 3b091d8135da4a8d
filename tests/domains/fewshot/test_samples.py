"""A new task as files: what is written is read again as the same task, and nothing is written over."""

import jax
import numpy as np
import pytest

import imaml
from imaml.cli.main import main
from imaml.cli.options import configure, split_words
from imaml.domains.fewshot.images import read_image_folder

SHAPE = ["--domain.ways=3", "--domain.shots=2", "--domain.queries=4"]
DOMAIN = configure("characters-5w1s", split_words(SHAPE)[1]).domain.build()


def sample(out, *words):
    return main(["sample", f"--out={out}", *words])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "my"
    assert sample(folder, "--seed=3", *SHAPE) == 0
    assert {part: len(list((folder / part).glob("*/*.png"))) for part in ("support", "query")} == {
        "support": 6,
        "query": 12,
    }
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("part", ["support", "query"])
def test_what_is_read_is_the_task(written, part):
    task = jax.jit(lambda key: DOMAIN.sample(key, "test"))(jax.random.key(3))
    rows = getattr(task, part)
    found = read_image_folder(written / part)
    assert [int(name.removeprefix("class-")) - 1 for name in found.labels] == sorted(rows.labels.tolist())
    for label in range(3):
        mine = found.images[np.array(found.labels) == f"class-{label + 1}"]
        drawn = rows.images[rows.labels == label][..., 0]
        ink = drawn.max(axis=(1, 2), keepdims=True)  # of the darkest pixel, which is read as 1
        np.testing.assert_allclose(mine, drawn / ink, atol=1.5 / 255)


def test_nothing_is_written_over(written, capsys):
    before = {file: file.read_bytes() for file in written.glob("*/*/*")}
    assert sample(written, "--seed=4", *SHAPE) == 2
    assert "expected a directory that does not exist yet" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in written.glob("*/*/*")} == before


def test_what_has_no_images_is_written_as_arrays(tmp_path, capsys):
    assert sample(tmp_path / "my", "sinusoid", "--domain.shots=4", "--domain.queries=3") == 0
    assert "4 support examples to adapt to, 3 query examples" in capsys.readouterr().out
    domain = imaml.sinusoid()
    support, _ = domain.encode(domain.read(tmp_path / "my" / "support.npz"))
    assert support.inputs.shape == (4, 1)
    assert domain.read(tmp_path / "my" / "query.npy", query=True).shape == (3, 1)


def test_an_unknown_split_is_refused(tmp_path, capsys):
    assert sample(tmp_path / "my", "--split=tests") == 2
    assert "--split: expected one of" in capsys.readouterr().err


def test_a_file_in_the_way_is_said(tmp_path, capsys):
    (tmp_path / "my").write_text("mine")
    assert sample(tmp_path / "my") == 2
    assert "expected a directory that does not exist yet" in capsys.readouterr().err
    assert (tmp_path / "my").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "my").write_text("mine")
    assert sample(tmp_path / "my" / "below") == 2
    assert "expected a place that can be written, got an error" in capsys.readouterr().err


def test_the_command_writes_what_adapt_reads(tmp_path, capsys):
    out = tmp_path / "my"
    words = ["sample", "--out", str(out), "--domain.ways=3", "--domain.queries=4", "--seed", "1"]
    assert main(words) == 0
    assert "holds a task: 3 support examples to adapt to, 12 query examples" in capsys.readouterr().out
    files = ["--support", str(out / "support"), "--query", str(out / "query")]
    with jax.numpy_rank_promotion("allow"):  # networks add a bias to every row
        assert main(["adapt", "artefacts/omniglot-5w1s.safetensors", *files]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    right = [line.split("\t")[1] in line.split("\t")[0] for line in lines]
    assert len(right) == 12
    assert sum(right) >= 9  # by chance 4, and 9 or more in one of 260 cases
    assert main(["sample", "no-such-preset", "--out", str(tmp_path / "other")]) == 2
