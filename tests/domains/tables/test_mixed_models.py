"""Mixed models: the estimates of lme4 and glmmTMB, and what is said of degenerate fits."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.marks import slow_after_first
from helpers.mixed_models import SIMULATED, simulated, write
from helpers.paths import DATA, ROOT
from imaml.cli.main import main
from imaml.config.methods import Method, made
from imaml.config.presets import preset
from imaml.config.training import Training
from imaml.core.errors import ConfigError
from imaml.training.experiment import assemble
from imaml.training.journal import read_events

RECORDED = json.loads((ROOT / "tests" / "recorded" / "mixed_models.json").read_text())
SLEEPSTUDY = DATA / "sleepstudy.csv"
ENOUGH = 0.05  # standard errors


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


def fitted(path, task, target, features, random=(), **training):
    """What `tables-evidence` says of a table, as JSON and as text, and the run."""
    config = preset("tables-evidence")
    fields = {"data": str(path), "task": task, "target": target, "features": features, "random": random}
    domain, training = replace(config.domain, **fields), replace(config.training, **training)
    run = assemble(replace(config, domain=domain, training=training)).train(progress=False)
    return *run.domain.summary(run.theta, run.method.problem), run


def compare(reference, effects, errors, deviations):
    """Assert that estimates are within `ENOUGH` standard errors of the reference's."""
    of = np.array(reference["errors"])
    away = (np.array(effects) - list(reference["effects"].values())) / of
    assert np.abs(away).max() < ENOUGH, away
    np.testing.assert_allclose(errors, of, rtol=0.03)
    logs = np.log(np.array(deviations) / reference["deviations"]) / reference["log_deviation_errors"]
    assert np.abs(logs).max() < ENOUGH, logs


GAUSSIAN = {
    "gaussian": (("x", "z"), ("intercept",)),
    "gaussian, small": (("x", "z"), ("intercept",)),
    "gaussian, no features": (("none",), ()),
    "gaussian, slopes": (("x", "z"), ("intercept", "x")),
    "sleepstudy, intercepts": (("Days",), ("intercept",)),
    "sleepstudy, slopes": (("Days",), ()),
}


@pytest.mark.parametrize("name", slow_after_first(list(GAUSSIAN)))
def test_tables_evidence_agrees_with_lme4(name, tmp_path):
    features, random = GAUSSIAN[name]
    path, task, target = tmp_path / "rows.csv", "g", "y"
    if name.startswith("sleepstudy"):
        if not SLEEPSTUDY.exists():
            pytest.skip("no sleepstudy.csv beside the project")
        path, task, target = SLEEPSTUDY, "Subject", "Reaction"
    else:
        write(simulated(name if name in SIMULATED else "gaussian"), path)
    about, text, _ = fitted(path, task, target, features, random)
    reference, prior, fit = RECORDED[name], about["prior"], about["fit"]
    mean, errors = prior["mean"].values(), fit["standard_errors"].values()
    compare(reference, list(mean), list(errors), list(fit["standard_deviations"].values()))
    assert fit["log_likelihood"] == pytest.approx(reference["log_likelihood"], abs=1e-3)
    assert fit["aic"] == pytest.approx(2 * fit["parameters"] - 2 * fit["log_likelihood"])
    assert prior["noise_variance"] ** 0.5 == pytest.approx(reference["noise"], rel=1e-3)
    assert fit["converged"]
    assert text.splitlines()[-1].startswith("converged")
    singular = any("singular" in said for said in fit["warnings"])
    assert singular == (name == "gaussian, slopes")
    if reference["correlation"]:
        assert fit["correlations"][1][0] == pytest.approx(reference["correlation"][0], abs=0.01)


def counts_model(inputs, size):
    """A linear model of the logarithm of the mean, with one dispersion for all groups if ``size``."""

    def init(key):
        found = {"intercept": jnp.zeros(1), "slopes": jnp.zeros((inputs, 1))}
        return {**found, "log_dispersion": jnp.zeros(1)} if size else found

    def apply(parameters, x):
        mean = x @ parameters["slopes"] + parameters["intercept"]
        if not size:
            return mean
        return jnp.concatenate([mean, jnp.broadcast_to(parameters["log_dispersion"], mean.shape)], 1)

    return init, apply


LONGEST = ("negative binomial", "negative binomial, less spread")
COUNTS = [name for name in SIMULATED if not name.startswith("gaussian")]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LONGEST else pytest.mark.slow) for name in COUNTS],
)
def test_counts_agree_with_lme4_and_glmmtmb(name):
    columns, reference, kind = simulated(name), RECORDED[name], SIMULATED[name][0]
    x = np.stack([columns["x"], columns["z"]], 1)
    tasks = imaml.Tasks.from_arrays(x, columns["y"], columns["g"], offset=columns["e"])
    size = kind == "negative_binomial"
    run = imaml.fit(
        tasks,
        counts_model(2, size),
        kind,
        adapt="intercept",
        optimiser=imaml.Optimiser("newton"),
        standardise=False,
        validation=0,
        test=0,
        steps=50,
        progress=False,
    )
    assert run.reason == "gradient"
    found = run.likelihood()
    mean = {k: np.asarray(v, np.float64).ravel() for k, v in run.theta.mean.items()}
    order = np.cumsum([0, *(len(v) for v in mean.values())])
    errors = dict(zip(mean, np.split(np.sqrt(np.diag(found.covariance)), order[1:-1]), strict=True))
    both = [[*part["intercept"], *part["slopes"]] for part in (mean, errors)]
    compare(reference, *both, found.deviations)
    assert found.log_likelihood == pytest.approx(reference["log_likelihood"], abs=0.01)
    assert found.distance < 0.01
    if size:
        away = (-mean["log_dispersion"][0] - np.log(reference["size"])) / reference["log_size_error"]
        assert abs(away) < ENOUGH


# --- what is degenerate, and how it is said --------------------------------------------------------------


def rows(groups=12, size=5, spread=1.0, seed=0, **columns):
    """A table of groups with their own level, a slope of 2, and other columns made of x."""
    random = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(groups), size), random.normal(size=groups * size)
    y = 1 + 2 * x + spread * random.normal(size=groups)[g] + 0.5 * random.normal(size=len(g))
    return {"g": g, "x": x, "y": y, **{name: make(x) for name, make in columns.items()}}


def alternating(x):
    """Rows whose groups all have the same mean."""
    return np.tile([1.0, -1.0], len(x) // 2)


DEGENERATE = {
    "sound": (rows(), ("x",), ("intercept",), {}, None),
    "no variance": (rows(size=4, y=alternating), ("none",), (), {}, "variance between groups is zero"),
    "constant": (rows(c=np.ones_like), ("x", "c"), ("intercept",), {}, "column 'c' is constant"),
    "collinear": (rows(c=lambda x: 3 - x), ("x", "c"), ("intercept",), {}, "column 'c' is a combination"),
    "few groups": (rows(groups=3), ("x",), (), {}, "a covariance of 3 numbers is learned from 3 groups"),
    "few rows": (rows(groups=6, size=2), ("x",), (), {}, "12 rows do not exceed 6 groups times 2 varying"),
    "many numbers": (rows(groups=2, size=2), ("x",), ("intercept",), {}, "4 numbers are learned from 4 rows"),
    "cut short": (rows(), ("x",), ("intercept",), {"steps": 2}, None),
}


@pytest.mark.parametrize("name", slow_after_first(list(DEGENERATE)))
def test_degenerate_fits_are_reported(name, tmp_path):
    columns, features, random, training, message = DEGENERATE[name]
    write(columns, tmp_path / "rows.csv")
    about, text, run = fitted(tmp_path / "rows.csv", "g", "y", features, random, **training)
    fit = about["fit"]
    if message is None:
        assert fit["warnings"] == []
    else:
        assert any(message in said for said in fit["warnings"]), fit["warnings"]
        assert f"warning: {fit['warnings'][0]}" in text
    if name in ("sound", "no variance", "constant", "collinear", "cut short"):
        assert fit["converged"] == (name != "cut short")
        assert run.reason == ("steps" if name == "cut short" else "gradient")
        start = "not converged: " if name == "cut short" else "converged: "
        assert text.splitlines()[-1].startswith(start)
    unknown = {"constant": {"c"}, "collinear": {"x", "c"}}.get(name, set())
    assert {c for c, error in fit["standard_errors"].items() if error is None} == unknown
    json.dumps(about, allow_nan=False)
    if name == "sound":
        population(run, about["prior"])


def population(run, prior):
    """A group without rows gets the population's prediction; its interval has the variance between groups."""
    found = run.adapt().predict_interval({"x": [0.0, 2.0]})
    line = prior["mean"]["intercept"] + prior["mean"]["x"] * np.array([0.0, 2.0])
    np.testing.assert_allclose(found.mean, line, rtol=1e-4, atol=1e-4)
    total = (prior["covariance"][0][0] + prior["noise_variance"]) ** 0.5
    np.testing.assert_allclose(found.high - found.low, 2 * 1.644854 * total, rtol=1e-3)


@pytest.mark.parametrize("task", ["g,h", "g:h", "g * h", ["g", "h"]])
def test_crossed_factors_are_refused_with_programs_that_take_them(task, tmp_path):
    write(rows(h=alternating), tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match=r"expected one column, got 2 .*lme4 or glmmTMB.*bambi or statsm"):
        imaml.tables(str(tmp_path / "rows.csv"), task, "y")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"random": ("z",)}, "domain: random: coefficient: expected one of intercept, x, got 'z'"),
        ({"random": ("x",), "hidden": (3,)}, "domain: random: expected none with hidden layers"),
        ({"features": ("none",), "hidden": (3,)}, "domain: hidden: expected features"),
    ],
)
def test_coefficients_that_do_not_exist_are_refused(fields, message, tmp_path):
    write(rows(), tmp_path / "rows.csv")
    with pytest.raises(ConfigError) as error:
        imaml.tables(str(tmp_path / "rows.csv"), "g", "y", **fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": Method("imaml")}, "expected the method evidence with name='newton'"),
        ({"training": Training(tasks=3)}, "expected every training task in each step with name='newton'"),
    ],
)
def test_newtons_method_is_refused_where_it_has_no_likelihood(change, message, tmp_path):
    write(rows(), tmp_path / "rows.csv")
    config = preset("tables-evidence")
    domain = replace(config.domain, data=str(tmp_path / "rows.csv"), task="g", target="y")
    with pytest.raises(ConfigError, match=message):
        assemble(replace(config, domain=domain, **change)).step()


@pytest.mark.parametrize(
    ("groups", "hidden", "per"), [(60, (), "dense"), (9, (), "parameter"), (60, (8,), "leaf")]
)
def test_a_precision_is_dense_only_where_tasks_are_many_more_than_parameters(groups, hidden, per, tmp_path):
    write(rows(groups=groups), tmp_path / "rows.csv")
    config = preset("tables")
    domain = replace(config.domain, data=str(tmp_path / "rows.csv"), task="g", target="y", hidden=hidden)
    chosen = assemble(replace(config, domain=domain))
    assert chosen.config.method.learned == chosen.method.problem.learns.per == per


@pytest.mark.slow
def test_the_command_line_fits_random_intercepts(tmp_path, capsys):
    """The estimates are the last lines, also where the intercept is chosen by --method.adapt."""
    write(rows(), tmp_path / "rows.csv")
    words = [
        f"--data={tmp_path / 'rows.csv'}",
        "--task=g",
        "--target=y",
        "--training.test_tasks=0",
        "--quiet",
    ]
    found = []
    for number, option in enumerate(("--random=intercept", "--method.adapt=layer1/bias")):
        run = str(tmp_path / str(number))
        assert main(["train", "tables-evidence", *words, option, f"--out={run}"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("converged: ")
        assert main(["evaluate", run, "--json", "--tasks=4"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert read_events(run)[-1]["converged"] is True
    for key, value in found[0]["prior"]["mean"].items():
        assert found[1]["prior"]["mean"][key] == pytest.approx(value, rel=1e-4)
    assert found[0]["prior"]["varying"] == found[1]["prior"]["varying"] == ["intercept"]
    run = str(tmp_path / "short")
    assert main(["train", "tables-evidence", *words, "--steps=1", f"--out={run}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("not converged: ")
    (tmp_path / "new.csv").write_text("x\n0\n1\n")
    words = [f"--query={tmp_path / 'new.csv'}", "--uncertainty"]
    assert main(["adapt", str(tmp_path / "0"), *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.slow
def test_a_run_that_was_cut_short_says_what_speaks_against_it(tmp_path, capsys):
    write(rows(groups=60), tmp_path / "rows.csv")
    words = ["--task=g", "--target=y", "--training.test_tasks=0", f"--data={tmp_path}/rows.csv"]
    words += ["--steps=40", "--tasks=0", "--training.log_every=1", "--method.bayes.noise=4"]
    assert main(["train", "tables", *words, f"--out={tmp_path}/run"]) == 0
    out, err = capsys.readouterr()
    assert "chosen   --method.learned=dense, by the number of training tasks" in err
    assert "warning: the loss is still falling. Hint: train for more --steps." in out
    assert "warning: intervals are wider than the spread of the data." in out
    assert "converged" not in out  # the likelihood is not what it maximises


def test_a_method_made_by_hand_counts_rows_once_where_all_are_support_and_query(tmp_path):
    write(rows(), tmp_path / "rows.csv")
    domain = imaml.tables(str(tmp_path / "rows.csv"), "g", "y", holdout="none")
    problem = imaml.proximal(imaml.likelihood(domain.loss), imaml.learned(1.0))
    solver = imaml.CG(steps=3)
    inner = imaml.NewtonCG(steps=2, linear=solver)
    method = imaml.EmpiricalBayes(problem, domain.query_loss, inner=inner, linear=solver)
    known = made(method, domain, None)
    task = domain.sample(jax.random.key(0), "train")
    assert task.whole(known.rule.whole).weights.sum() == 5


@pytest.mark.slow
def test_the_likelihood_of_rows_that_count_twice_is_that_of_the_rows_written_twice(tmp_path):
    columns = rows()
    write({**columns, "w": np.full(60, 2)}, tmp_path / "weighted.csv")
    write({name: np.tile(column, 2) for name, column in columns.items()}, tmp_path / "twice.csv")
    config, found = preset("tables-evidence"), []
    for name, weights in (("weighted", "w"), ("twice", None)):
        fields = {
            "task": "g",
            "target": "y",
            "features": ("x",),
            "random": ("intercept",),
            "weights": weights,
        }
        domain = replace(config.domain, data=str(tmp_path / f"{name}.csv"), **fields)
        run = assemble(replace(config, domain=domain)).train(progress=False)
        found.append(run.domain.summary(run.theta, run.method.problem)[0]["fit"])
    for name in ("log_likelihood", "aic"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-3)
