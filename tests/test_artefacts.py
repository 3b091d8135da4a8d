"""The committed artefacts load, say what they are, and read characters as the README claims: a few tasks."""

import json

import jax
import numpy as np
import pytest
from benchmarks.harness import Result
from benchmarks.learning.omniglot import configured

import imaml
from helpers.marks import slow_after_first
from helpers.paths import ARTEFACTS, DATA, ROOT
from imaml.cli.main import main
from imaml.config import to_json
from imaml.config.presets import preset
from imaml.training.directory import first_difference

INDEX = json.loads((ARTEFACTS / "index.json").read_text())
FILES = sorted(ARTEFACTS.glob("*.safetensors"))


@pytest.fixture(autouse=True)
def ranks():
    """Networks add biases to batches; strictness about ranks is for our own solvers."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_there_are_artefacts():
    assert FILES, f"no artefact in {ARTEFACTS}"


@pytest.mark.parametrize("file", slow_after_first(FILES), ids=lambda file: file.stem)
def test_an_artefact_reads_drawn_characters_from_one_example_each(file):
    """Drawn characters were never seen by an artefact of Omniglot either: both must be far above chance.

    Eight tasks of fifteen images: the standard error is about 3 points, the bar over four of them below.
    """
    learned = imaml.load(file)
    domain = imaml.characters(ways=learned.config.domain.ways, shots=1, queries=3)
    right, sample = [], jax.jit(lambda key: domain.sample(key, "test"))
    for number in range(8):
        task = sample(jax.random.key(number))
        predictor = learned.adapt(np.asarray(task.support.images), np.asarray(task.support.labels))
        right.append(np.mean(predictor.predict(np.asarray(task.query.images)) == task.query.labels))
    assert np.mean(right) > 0.75


@pytest.mark.slow
def test_a_posterior_is_less_sure_of_a_drawing_of_no_class_known_and_answers_one_by_one():
    learned = imaml.load(ARTEFACTS / "omniglot-5w1s.safetensors")
    domain = imaml.characters(ways=learned.config.domain.ways, shots=1, queries=3)
    sample = jax.jit(lambda key: domain.sample(key, "test"))
    task, other = (sample(jax.random.key(number)) for number in (0, 1))
    predictor = learned.adapt(np.asarray(task.support.images), np.asarray(task.support.labels))
    images = np.concatenate([task.query.images[::5][:2], other.query.images[::5][:2]])
    sure, unsure = predictor.predict_proba(images), predictor.predict_proba(images, uncertainty=True)
    np.testing.assert_allclose(unsure.sum(1), 1, atol=1e-5)
    assert np.all(unsure.max(1) < sure.max(1))  # its variance only ever flattens
    assert unsure[:2].max(1).min() > unsure[2:].max(1).max()
    np.testing.assert_array_equal(unsure[1:2], predictor.predict_proba(images[1:2], uncertainty=True))
    # The prior's precision for the mean loss of five images: five times the strength that phi solves.
    strength = learned.config.method.new_task.strength or learned.config.method.strength
    assert predictor.posterior.problem.strength == pytest.approx(5 * strength)


def domain_of(row):
    """The recipe of the tasks that a row of the index is scored on."""
    entry = INDEX[row]
    return configured(entry, imaml.load(ROOT / entry["file"]), None)[0].domain


def committed(row):
    """The committed scores of a row of the index."""
    protocol = {"random": "upright"}.get(domain_of(row).protocol, domain_of(row).protocol)
    (found,) = [
        each
        for each in Result.read("omniglot.json").rows
        if (each["row"], each["protocol"]) == (row, protocol)
    ]
    return found


@pytest.mark.parametrize("name", ["omniglot-head", "omniglot-background"])
def test_a_preset_is_what_its_artefact_was_trained_with(name):
    """Up to what no training step depends on."""
    config = imaml.load(ARTEFACTS / f"{name}.safetensors").config
    assert first_difference(to_json(config), to_json(preset(name))) is None


@pytest.mark.parametrize("row", INDEX)
def test_the_command_line_accepts_the_options_of_the_index(row, capsys):
    """Up to the data, which are not there; an option that is not known is refused before."""
    entry = INDEX[row]
    words = [str(ROOT / entry["file"]), *entry["options"], "--data", "/no/such/data.npz"]
    assert main(["evaluate", *words]) != 0
    assert "/no/such/data.npz" in capsys.readouterr().err


@pytest.mark.parametrize("row", INDEX)
def test_the_index_names_artefacts_with_options_that_they_accept_and_a_committed_result(row):
    domain = domain_of(row)
    assert committed(row)["file"] == INDEX[row]["file"]
    if row[0].isdigit():
        assert row == f"{domain.ways}w{domain.shots}s"


@pytest.mark.long
@pytest.mark.parametrize("row", INDEX)
@pytest.mark.skipif(not (DATA / "omniglot.npz").exists(), reason="Omniglot is not there")
def test_an_entry_of_the_index_gives_its_row_again(row, capsys):
    """On other tasks: the difference is within three standard errors, of these and of the committed ones."""
    entry = INDEX[row]
    words = [str(ROOT / entry["file"]), *entry["options"], "--data", str(DATA / "omniglot.npz")]
    tasks = [] if "--tasks" in entry["options"] else ["--tasks", "100"]
    assert main(["evaluate", *words, *tasks, "--seed", "7", "--json"]) == 0
    found, before = json.loads(capsys.readouterr().out), committed(row)
    for score in ("accuracy", "accuracy_inductive"):
        wide = np.hypot(found[f"{score}_ci95"], before[f"{score}_ci95"]) * 3 / 1.96
        assert abs(found[score] - before[score]) <= wide
