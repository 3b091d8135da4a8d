"""What an evaluation says of its tasks and of its baselines, from given scores."""

from dataclasses import replace

import numpy as np
import pytest

from imaml.domains.base import DomainBase
from imaml.training.scores import Evaluation

RNG = np.random.default_rng(0)
LOSS = RNG.normal(size=40)
BASELINES = {"true": LOSS - 2, "simple": LOSS - 1, "optimal": LOSS + RNG.normal(size=40)}


def found(**options):
    """An evaluation of 40 tasks by their losses."""
    means = {name: float(values.mean()) for name, values in BASELINES.items()}
    given = {
        "scores": {"loss": float(LOSS.mean())},
        "ci95": {"loss": 0.3},
        "before": {"loss": 1.0},
        "before_ci95": {"loss": 0.3},
        "baselines": means,
        "baselines_ci95": dict.fromkeys(means, 0.3),
    }
    made = Evaluation(
        **given,
        tasks=40,
        split="test",
        seed=0,
        failed=0,
        values={"loss": LOSS},
        headline="loss",
        higher_is_better=False,
        baseline_values=BASELINES,
    )
    return replace(made, **options)


@pytest.mark.parametrize(
    ("options", "unseen"),
    [({}, True), ({"split": "train"}, False), ({"held_out": False}, False), ({"split": "validation"}, True)],
)
def test_only_tasks_that_training_has_not_seen_are_called_so(options, unseen):
    made = found(**options)
    assert ("40 tasks never seen in training" in str(made)) == unseen
    assert ("these are training tasks" in str(made)) == (not unseen)
    assert made.to_json()["held_out"] == unseen


def test_no_verdict_names_an_oracle():
    assert found().worse_than() == ["true", "simple"]
    known = found(oracles=("optimal", "true"))
    assert known.worse_than() == ["simple"]
    assert known.verdicts() == ["simple is better than adaptation here: use it instead"]
    assert known.to_json()["oracles"] == ["optimal", "true"]
    assert DomainBase.oracles == frozenset()
