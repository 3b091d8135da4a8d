"""`imaml.MetaRegressor`, `imaml.MetaClassifier`: scikit-learn's interface."""

import pickle
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import imaml
from helpers.processes import QUICK
from imaml.config.method import IMAMLRecipe

pytestmark = pytest.mark.usefixtures("ranks_mixed")
INNER = imaml.GradientDescent(0.01, steps=1)  # adapts little, so that the population is predicted well
TINY = {
    "shots": 4,
    "validation": 0.0,
    "method": IMAMLRecipe(strength=3.0, inner=INNER, linear=imaml.CG(steps=1)),
    "optimiser": imaml.Optimiser("adam", 0.1),
    "tasks_per_step": 2,
    "steps": 60,
}


def lines(groups=20, rows=8, seed=0):
    """Lines with levels of their own, as X, y and groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rows)
    X = rng.uniform(-1, 1, (len(group), 1))
    return X, rng.normal(5, 2, groups)[group] + X[:, 0], group


def thresholds():
    """Classes by thresholds of each task's own."""
    X, y, group = lines()
    return X, np.where(y > 5, "yes", "no"), group


CASES = {"regressor": (imaml.MetaRegressor, lines), "classifier": (imaml.MetaClassifier, thresholds)}


@pytest.mark.parametrize("case", CASES)
def test_an_estimator_fits_adapts_clones_and_pickles(case):
    kind, made = CASES[case]
    X, y, groups = made()
    learner = kind("linear", **TINY).fit(pd.DataFrame(X, columns=["when"]), y, groups=groups)
    assert learner.feature_names_in_.tolist() == ["when"]
    few, rest = pd.DataFrame(X[:4], columns=["when"]), pd.DataFrame(X[4:8], columns=["when"])
    before = learner.predict(rest)
    adapted = learner.adapt(few, y[:4])
    assert type(adapted) is kind
    np.testing.assert_array_equal(learner.predict(rest), before)  # adapting leaves it as it was
    again = pickle.loads(pickle.dumps(adapted))
    np.testing.assert_array_equal(again.predict(rest), adapted.predict(rest))
    assert clone(adapted).get_params() == learner.get_params()
    with pytest.raises(ValueError, match="feature names should match"):
        adapted.predict(rest.rename(columns={"when": "where"}))
    if case == "regressor":
        direct = learner.learner_.adapt(X[:4], y[:4])
        np.testing.assert_array_equal(adapted.predict(rest), direct.predict(X[4:8]))
        assert np.abs(adapted.predict(rest) - y[4:8]).mean() < np.abs(before - y[4:8]).mean()
        assert (adapted.predict_interval(rest).high > adapted.predict(rest)).all()
    else:
        assert set(adapted.predict(rest)) <= {"no", "yes"}
        np.testing.assert_allclose(adapted.predict_proba(rest).sum(axis=1), 1, atol=1e-6)
        with pytest.raises(imaml.DataError, match="y: class: expected"):
            learner.adapt(few, ["no", "yes", "no", "perhaps"])


def test_without_groups_rows_are_dealt_into_tasks_and_a_warning_says_so():
    X, y, _ = lines(groups=5)
    with pytest.warns(RuntimeWarning, match="groups: expected the task of each row, got None"):
        learner = imaml.MetaRegressor("linear", **TINY).fit(X, y)
    assert learner.predict(X).shape == y.shape


def test_scikit_learn_is_imported_with_the_first_estimator():
    missing = (
        "import sys, imaml; imaml.Tasks; assert 'sklearn' not in sys.modules; "
        "sys.modules['sklearn.base'] = None; imaml.MetaRegressor"
    )
    done = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, env=QUICK)
    assert re.search(r"ConfigError: .*pip install 'imaml\[sklearn\]'", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("routed", [False, True])
def test_cross_validation_by_groups(routed):
    X, y, groups = lines()
    learner = imaml.MetaRegressor("linear", shots=4, strength=0.01, steps=100, validation=0.0)
    with sklearn.config_context(enable_metadata_routing=routed):
        if routed:  # the score is then that of predictions after adapting to each new task
            learner = learner.set_fit_request(groups=True).set_score_request(groups=True)
            scores = cross_val_score(learner, X, y, cv=GroupKFold(2), params={"groups": groups})
        else:
            scores = cross_val_score(
                learner, X, y, groups=groups, cv=GroupKFold(2), params={"groups": groups}
            )
    assert scores.shape == (2,)
    assert (scores > 0.9).all() == routed


@pytest.mark.slow
def test_a_pipeline_passes_groups_on():
    X, y, groups = thresholds()
    pipe = make_pipeline(StandardScaler(), imaml.MetaClassifier("linear", **TINY))
    pipe.fit(X, y, metaclassifier__groups=groups)
    assert pipe.score(X, y) >= 0.5
    assert pipe[-1].adapt(pipe[:-1].transform(X[:4]), y[:4]).predict(X).shape == y.shape


EVERY = [imaml.MetaRegressor("linear", **TINY), imaml.MetaClassifier("linear", **TINY)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*groups. expected:RuntimeWarning")
@parametrize_with_checks(EVERY)
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def test_texts_have_no_order():
    X, y, groups = thresholds()
    with pytest.raises(imaml.DataError, match=r"expected numbers with loss='ordinal'.*got .*no"):
        imaml.MetaClassifier("linear", "ordinal", **TINY).fit(X, y, groups=groups)
