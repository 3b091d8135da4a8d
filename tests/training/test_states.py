"""What a run is saved with: that it is untrained, and what its intervals were calibrated by."""

import dataclasses

import numpy as np
import pytest

import imaml
from imaml.config import Method
from imaml.config.run import load_config
from imaml.domains.tasks.sources import TasksFile
from imaml.domains.user_data import UserData
from imaml.training.experiment import assemble

pytestmark = pytest.mark.usefixtures("ranks_mixed")
GROUPS = np.repeat(np.arange(40), 8)


def rows():
    random = np.random.default_rng(0)
    x = random.normal(size=320)
    return x, random.normal(size=40)[GROUPS] + 2 * x


@pytest.mark.parametrize(
    "options",
    [{"average": 0.9}, {"clip": 1.0}, {"log_scale": 2.0}, {"learning_rate": 0.1}, {"warmup": 3}],
    ids=lambda options: next(iter(options)),
)
def test_newton_s_method_has_no_rate_and_no_average(options):
    """With an average, a run of Newton's method ended with the parameters that it began with."""
    with pytest.raises(imaml.ConfigError, match=f"{next(iter(options))}=.*, as newton has no"):
        imaml.Optimiser("newton", **options)


def test_an_untrained_run_is_saved_as_one(tmp_path):
    domain = imaml.sinusoid(hidden=4)
    method = Method("fomaml", inner=imaml.GradientDescent(0.01, steps=2)).build(domain)
    run = imaml.train(
        domain, method, imaml.Optimiser(), steps=0, tasks=2, validate_every=0, progress=False, out=None
    )
    run.save(tmp_path / "run.safetensors")
    with pytest.warns(RuntimeWarning, match="the parameters are untrained"):
        learner = imaml.load(tmp_path / "run.safetensors")
    learner.save(tmp_path / "again.safetensors")
    with pytest.warns(RuntimeWarning, match="the parameters are untrained"):
        imaml.load(tmp_path / "again.safetensors")


def test_training_on_forgets_the_calibration_of_its_intervals(tmp_path):
    """Until it is made anew at the end: an interrupted run had that of older parameters."""
    x, y = rows()
    np.savez(tmp_path / "rows.npz", x=x, y=y, groups=GROUPS)
    tasks = TasksFile(str(tmp_path / "rows.npz")).read()
    run = imaml.fit(
        tasks,
        "linear",
        validation=0.4,
        strength=1.0,
        steps=3,
        pretrain=0,
        out=tmp_path / "run",
        progress=False,
    )
    assert len(run.config.domain.quantiles) > 0
    stored = load_config((tmp_path / "run" / "config.json").read_text(), "config.json")
    assert stored.domain.quantiles == run.config.domain.quantiles
    assert assemble(stored).config.domain.quantiles == ()


def test_a_validation_task_that_fails_does_not_end_a_run():
    x, y = rows()
    bad = int(imaml.Tasks.from_arrays(x, y, GROUPS).splits(0.2, 0.2, 0)["validation"][0])
    x = np.where(bad == GROUPS, 1e25 * x, x)
    tasks = imaml.Tasks.from_arrays(x[:, None], y, GROUPS)
    with pytest.warns(RuntimeWarning, match="1 of 8 validation tasks fail numerically"):
        run = imaml.fit(tasks, "linear", strength=1.0, steps=3, pretrain=0, standardise=False, progress=False)
    low, high = run.adapt([0.0, 1.0], [0.0, 2.0]).predict_interval([3.0])[1:]
    assert np.isfinite([low, high]).all()


@dataclasses.dataclass
class Fixed:
    """A predictor with these answers."""

    classes: np.ndarray | None

    def predict(self, x):
        return np.array([1.0, 2.0])

    def predict_interval(self, x, level=0.9):
        return self.predict(x), self.predict(x) - 1, self.predict(x) + 1

    def predict_proba(self, x, uncertainty=False):
        return np.array([[0.9, 0.1], [0.2, 0.8]]) if not uncertainty else np.full((2, 2), 0.5)


@pytest.mark.parametrize("classes", [None, np.array([1.0, 2.0])], ids=["numbers", "classes"])
def test_answers_have_the_uncertainty_that_was_asked_for(classes):
    plain, sure = (UserData().answers(Fixed(classes), None, None, asked) for asked in (False, True))
    assert plain.rows[0] == {"row": 1, "prediction": 1.0}
    more = {"low": 0.0, "high": 2.0} if classes is None else {"probabilities": {"1.0": 0.5, "2.0": 0.5}}
    assert sure.rows[0] == {"row": 1, "prediction": 1.0, **more}
    assert sure.lines[0].startswith(plain.lines[0] + "\t")
