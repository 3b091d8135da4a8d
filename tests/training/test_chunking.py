"""chunk="auto": the fastest is chosen, kept for the next run, written into the run, and never guessed."""

import json

import jax
import pytest

from imaml.cli.main import main
from imaml.config.overrides import override
from imaml.config.presets import preset
from imaml.core.errors import ConfigError
from imaml.training import chunk_tuning as chunking
from imaml.training.chunk_tuning import settled

pytestmark = pytest.mark.usefixtures("ranks_mixed")
SMALL = ["--domain.hidden=4", "--training.tasks=10", "--method.inner.steps=1", "--method.linear.steps=1"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A user's cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imaml" / "chunks.json"


def auto():
    """The sinusoid's preset with ten tasks, its chunk to be measured."""
    return override(override(preset("sinusoid"), "method.chunk", "auto"), "training.tasks", "10")


def test_the_fastest_that_fits_is_chosen_once_and_kept(monkeypatch, cache):
    times = {1: 3.0, 4: 2.0, None: None}  # all at once do not fit
    asked, said = [], []

    def measured(config):
        asked.append(config.method.chunk)
        return times[config.method.chunk]

    monkeypatch.setattr(chunking, "_milliseconds", measured)
    assert settled(auto(), said.append).method.chunk == 4
    tried = [1, 4, None] if jax.device_count() <= 2 else asked
    assert asked == tried
    assert settled(auto(), said.append).method.chunk == 4
    assert asked == tried  # not measured again
    assert said[0] == said[1]
    assert "4 at once 2.0 ms" in said[0]
    assert "all at once too large" in said[0]
    other = override(auto(), "method.inner.steps", "3")
    times[1] = 1.0
    assert settled(other).method.chunk == 1
    cache.write_text("{")  # damaged: measured anew
    times[None] = 0.5
    assert settled(auto()).method.chunk is None
    assert len(json.loads(cache.read_text())) == 1


@pytest.mark.slow
def test_a_run_has_the_number_and_goes_on_with_it(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["--method.chunk=auto", f"--out={out}", *SMALL, "--training.test_tasks=0"]
    words += ["--training.validate_every=0", "--training.checkpoint_every=2"]
    assert main(["train", "sinusoid", *words, "--steps=2"]) == 0
    assert "a step takes 1 at once" in capsys.readouterr().err
    chunk = json.loads((out / "config.json").read_text())["method"]["chunk"]
    assert chunk in (1, 4, None)
    monkeypatch.setattr(chunking, "_milliseconds", lambda config: pytest.fail("measured again"))
    assert main(["train", "sinusoid", *words, "--steps=2", "--resume"]) == 0
    assert json.loads((out / "config.json").read_text())["method"]["chunk"] == chunk


def test_elsewhere_auto_is_refused():
    with pytest.raises(ConfigError, match="chunk: expected a whole number"):
        auto().method.build(auto().domain.build())
    with pytest.raises(ConfigError, match="expected a whole number or auto or none, got 'fast'"):
        override(preset("sinusoid"), "method.chunk", "fast")
