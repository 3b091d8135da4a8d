"""The outer loop: the same result whatever interrupts it, why it stops, what it refuses."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imaml
from imaml.config.methods import Method
from imaml.config.optimiser import Outer
from imaml.config.presets import PRESETS
from imaml.config.run import Config, load_config
from imaml.config.training import Training
from imaml.core.errors import CheckpointError, ConfigError, NumericalError
from imaml.core.recipes import from_json, to_json
from imaml.problems.precision import Theta
from imaml.storage.artefact import read_artefact
from imaml.storage.checkpoint import Checkpoints
from imaml.storage.integrity import read_record
from imaml.training.directory import first_difference
from imaml.training.experiment import assemble
from imaml.training.journal import read_events
from imaml.training.step import initial_state, make_step

pytestmark = pytest.mark.usefixtures("two_devices")
DOMAIN = imaml.linear_gaussian(features=3, shots=4, queries=4)
RECIPE = Method(strength=0.5, inner=imaml.GradientDescent(0.1, steps=4), linear=imaml.CG(steps=2))
METHOD = RECIPE.build(DOMAIN)
ADAM = imaml.Optimiser("adam", 0.05, schedule="constant")


BUILT = {}  # steps already compiled, by what they are made from: most tests train the same few


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
    from imaml.training import experiment as training

    def make(method, outer, tasks, *logged):
        # Errors are estimated in all steps, so `logged` is no part of the key.
        key = (*BUILT["next"], tasks, outer.average)
        return BUILT.setdefault(key, make_step(method, outer, tasks))

    monkeypatch.setattr(training, "make_step", make)


def train(optimiser=ADAM, domain=DOMAIN, method=METHOD, **options):
    # The schedule is constant in all of these, so that a step does not depend on how many there are.
    BUILT["next"] = (repr(optimiser), method.inner, method.rule)
    defaults = {"steps": 6, "tasks": 4, "validate_every": 0, "progress": False}
    return imaml.train(domain, method, optimiser, **{**defaults, **options})


def equal(left, right):
    """Bit for bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())


def differs(left, right):
    with pytest.raises(AssertionError):
        equal(left, right)


def kinds(folder):
    return [event["event"] for event in read_events(folder)]


def test_a_seed_decides_everything():
    first = train(seed=1)
    equal(first.theta, train(seed=1).theta)
    differs(first.theta, train(seed=2).theta)
    assert (first.step, first.reason, first.folder) == (6, "steps", None)


def test_a_step_is_the_same_whatever_came_before():
    outer = Outer(optax.sgd(0.1), None, 0.0)
    step = make_step(METHOD, outer, 4)
    start, key = jax.random.split(jax.random.key(0))
    state = initial_state(DOMAIN, METHOD, outer, start)
    gradients = []
    for _ in range(3):
        before, (state, report) = state, step(DOMAIN, state, key)
        gradients.append(report["gradient_norm"])
    _, again = step(DOMAIN, before, key)  # step 3 once more, without the first two
    equal(again["gradient_norm"], gradients[2])
    assert len({float(g) for g in gradients}) == 3


@pytest.mark.parametrize("tasks", [4, 3])  # shared by two devices; on one
def test_nothing_is_compiled_after_the_first_step(tasks, monkeypatch):
    from imaml.training import experiment as training

    made = []
    monkeypatch.setattr(training, "make_step", lambda *args: made.append(make_step(*args)) or made[-1])
    train(tasks=tasks, steps=5)
    assert made[0]._cache_size() == 1


def test_it_learns():
    before = imaml.evaluate(train(steps=0), split="test", tasks=200)
    after = imaml.evaluate(train(steps=150), split="test", tasks=200)
    assert after.scores["loss"] < 0.5 * before.scores["loss"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 2}, "steps"),
        ({"steps": 0}, "steps"),
        ({"minutes": 1e-6}, "minutes"),
        ({"gradient_below": 1e9, "log_every": 2}, "gradient"),
        ({"steps": 50, "validate_every": 1, "patience": 2, "validation_tasks": 4}, "converged"),
    ],
)
def test_why_it_stops(options, reason, tmp_path):
    # A rate of nearly nothing never improves anything, so that two validations without improvement come soon.
    optimiser = imaml.Optimiser("sgd", 1e-30, schedule="constant") if reason == "converged" else ADAM
    run = train(optimiser, out=tmp_path / "run", **options)
    assert run.reason == reason
    events = read_events(tmp_path / "run")
    assert (events[-1]["event"], events[-1]["reason"], events[-1]["step"]) == ("end", reason, run.step)
    assert run.step == {"minutes": 1, "gradient": 2, "converged": 3}.get(reason, options.get("steps"))
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == run.step
    again = train(optimiser, out=tmp_path / "run", resume=True, **options)  # what was over stays over
    assert (again.step, again.reason) == (run.step, reason)
    equal(again.theta, run.theta)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_it_after_the_step(tmp_path):
    timer = threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    timer.start()
    run = train(out=tmp_path / "run", steps=10**6, checkpoint_every=10**6)
    assert signal.getsignal(signal.SIGINT) == before
    assert run.reason == "interrupted"
    assert 0 < run.step < 10**6
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == run.step


def stop_after(monkeypatch, count):
    """Makes the next run die with its process, as it were, after `count` steps."""
    from imaml.training import experiment as training

    build = training.make_step

    def make(*args):
        step, left = build(*args), [count]

        def counted(*state):
            if not left[0]:
                raise SystemError("killed")
            left[0] -= 1
            return step(*state)

        counted.eval_shape = step.eval_shape
        return counted

    monkeypatch.setattr(training, "make_step", make)


OPTIONS = {"steps": 11, "checkpoint_every": 4, "log_every": 3, "validate_every": 5, "validation_tasks": 4}


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_resumed_run_ends_as_an_uninterrupted_one(average, tmp_path, monkeypatch):
    optimiser = dataclasses.replace(ADAM, average=average, clip=1.0)
    whole = train(optimiser, out=tmp_path / "whole", **OPTIONS)
    out = tmp_path / "part"
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(SystemError):
            train(optimiser, out=out, **OPTIONS)
    assert Checkpoints(out / "checkpoints").steps()[-1] == 4
    resumed = train(optimiser, out=out, resume=True, **OPTIONS)
    equal(resumed.theta, whole.theta)
    equal(read_artefact(out)[0], read_artefact(tmp_path / "whole")[0])
    last = [
        [e for e in read_events(folder) if e["event"] == "step"][-1] for folder in (tmp_path / "whole", out)
    ]
    assert [event["loss"] for event in last] == [last[0]["loss"]] * 2
    assert "resume" in kinds(out)


@pytest.mark.slow
def test_a_run_may_end_with_its_best_validation(tmp_path, monkeypatch):
    # Each step is so long that all are worse than the start.
    far = imaml.Optimiser("sgd", 5.0, clip=1.0, schedule="constant")
    options = {**OPTIONS, "steps": 10, "restore_best": True}
    start, seen = train(steps=3).theta, []
    whole = train(far, out=tmp_path / "whole", start=start, on_validation=seen.append, **options)
    assert [record["step"] for record in seen] == [0, 5, 10]
    assert [record["best"] for record in seen] == [True, False, False]
    equal(whole.theta, start)
    assert (whole.step, whole.untrained) == (10, False)
    assert read_events(tmp_path / "whole")[-1]["kept"] == 0
    out = tmp_path / "part"
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(SystemError):
            train(far, out=out, start=start, **options)
    resumed = train(far, out=out, resume=True, **options)
    equal(resumed.theta, start)
    equal(read_artefact(out)[0], read_artefact(tmp_path / "whole")[0])


def test_a_validation_with_more_failed_tasks_is_no_better(monkeypatch):
    from imaml.training import loop

    measured, kept = loop.evaluate_theta, []

    def broken(*given, **options):
        kept.append(measured(*given, **options))
        failing = {1: 3, 2: 1}.get(len(kept) - 1, 0)  # at step 1 and 2
        scores = dict.fromkeys(kept[-1].scores, 0.0) if failing else kept[-1].scores
        return dataclasses.replace(kept[-1], failed=failing, scores=scores)

    monkeypatch.setattr(loop, "evaluate_theta", broken)
    seen = []
    options = {"steps": 3, "validate_every": 1, "validation_tasks": 4, "restore_best": True}
    run = train(**options, on_validation=seen.append)
    assert [record["failed"] for record in seen] == [0, 3, 1, 0]
    assert [record["best"] for record in seen][:3] == [True, False, False]
    best = [record for record in seen if record["best"]][-1]
    equal(run.theta, best["theta"])


def test_a_run_that_took_no_step_is_loaded_with_a_warning(tmp_path, capsys, recwarn):
    """As after Ctrl-C while the first step compiles; not where its parameters are those of another run."""
    from imaml.cli.main import main

    trained = train(out=tmp_path / "trained", steps=1)
    imaml.load(tmp_path / "trained")
    started = train(out=tmp_path / "started", steps=0, start=trained.theta)
    train(out=tmp_path / "started", steps=0, resume=True)
    equal(imaml.load(tmp_path / "started").theta, started.theta)
    assert not [w for w in recwarn.list if "untrained" in str(w.message)]
    train(out=tmp_path / "new", steps=0)
    with pytest.warns(
        RuntimeWarning, match=r"the parameters are untrained \(step 0\). Hint: continue the run"
    ):
        imaml.load(tmp_path / "new")
    np.savez(tmp_path / "support.npz", inputs=np.ones((4, 3)), targets=np.ones(4))
    np.save(tmp_path / "query.npy", np.ones((2, 3)))
    files = [f"--support={tmp_path / 'support.npz'}", f"--query={tmp_path / 'query.npy'}"]
    main(["adapt", str(tmp_path / "new"), *files])
    assert "warning" in capsys.readouterr().err


def test_what_a_killed_run_leaves_is_no_run(tmp_path):
    """Files half written, before config.json is there."""
    (tmp_path / ".config.json.123.writing").write_text("{")
    (tmp_path / "events.jsonl").write_text("")
    assert train(out=tmp_path, steps=1).step == 1
    assert (tmp_path / "config.json").is_file()


def test_a_run_with_a_constant_learning_rate_may_be_prolonged(tmp_path):
    constant = dataclasses.replace(ADAM, schedule="constant")
    whole = train(constant, out=tmp_path / "whole", steps=4)
    assert train(constant, out=tmp_path / "part", steps=2).step == 2
    longer = train(constant, out=tmp_path / "part", steps=4, resume=True)
    equal(longer.theta, whole.theta)
    assert imaml.load(tmp_path / "part").config.training.steps == 4
    falling = dataclasses.replace(ADAM, schedule="cosine")
    train(falling, out=tmp_path / "falling", steps=2)
    says = r"Hint: the learning rate falls to zero .*--from.*schedule=constant"
    with pytest.raises(ConfigError, match=says):
        train(falling, out=tmp_path / "falling", steps=4, resume=True)


def test_resuming_refuses_another_configuration(tmp_path):
    out = tmp_path / "run"
    train(out=out, steps=4)
    for optimiser, options, says in (
        (ADAM, {"steps": 4, "seed": 3}, "training.seed was 0 and is now 3"),
        (
            imaml.Optimiser("sgd", 0.05, schedule="constant"),
            {"steps": 4},
            "optimiser.name was 'adam' and is now",
        ),
        (optax.sgd(0.1), {"steps": 4}, "expected the configuration that the run was started with"),
    ):
        with pytest.raises(ConfigError, match=says):
            train(optimiser, out=out, resume=True, **options)
    method = dataclasses.replace(RECIPE, linear=imaml.CG(steps=3)).build(DOMAIN)
    with pytest.raises(ConfigError, match=r"method\.linear\.steps was 2 and is now 3"):
        train(method=method, out=out, resume=True, steps=4)
    assert train(out=out, resume=True, steps=4, minutes=5, keep=1).step == 4  # no step depends on these
    with pytest.raises(ConfigError, match="expected a new or empty directory, got one with files in it"):
        train(out=out)
    with pytest.raises(ConfigError, match="expected the run directory with resume=True"):
        train(resume=True)
    with pytest.raises(ConfigError, match="start: expected None"):
        train(out=out, resume=True, start=jnp.zeros(3))


def test_a_raw_optax_object_is_welcome_from_python_alone(tmp_path, capsys):
    from imaml.cli.main import main

    out = tmp_path / "run"
    run = train(optax.sgd(0.1), out=out)
    assert json.loads((out / "config.json").read_text())["optimiser"]["kind"] == "OptaxTransform"
    equal(train(optax.sgd(0.1), out=out, resume=True).theta, run.theta)
    assert any("cannot be checked" in e["message"] for e in read_events(out) if e["event"] == "warning")
    capsys.readouterr()
    assert main(["train", "--resume", f"--out={out}"]) == 2
    assert "resume the run from Python" in capsys.readouterr().err
    support = DOMAIN.sample(jax.random.key(1), "test").support
    equal(imaml.load(out).adapt(support).phi, run.adapt(support).phi)  # neither needs the optimiser


def test_an_experiment_is_the_same_run_as_one_from_objects_or_recipes():
    options = {"steps": 3, "tasks": 4, "validate_every": 0}
    run = train(**options)
    config = Config(DOMAIN.recipe, RECIPE, ADAM, Training(**options))
    experiment = assemble(config)
    for other in (
        experiment.train(progress=False),
        assemble(config, DOMAIN).train(progress=False),
        imaml.train(DOMAIN, RECIPE, ADAM, progress=False, **options),
    ):
        equal(other.theta, run.theta)
        assert other.config == run.config == config
    assert (experiment.tasks, experiment.method.origin) == (4, (RECIPE, DOMAIN.recipe))


def test_a_method_made_by_hand_is_trained_and_resumed_from_python(tmp_path):
    out = tmp_path / "run"
    by_hand = imaml.IMAML(
        DOMAIN.problem(0.5), DOMAIN.query_loss, inner=METHOD.inner, linear=imaml.CG(steps=2)
    )
    run = train(method=by_hand, out=out)
    equal(run.theta, train().theta)
    assert run.config is None
    assert "made by hand" in json.loads((out / "config.json").read_text())["reason"]
    equal(train(method=by_hand, out=out, resume=True).theta, run.theta)
    with pytest.raises(imaml.ArtefactError, match=r"imaml\.config\.Method"):
        imaml.load(out)
    with pytest.raises(ConfigError, match=r"imaml\.config\.Method"):
        run.adapt([0.0], [1.0])
    elsewhere = imaml.linear_gaussian(features=3, shots=5, queries=4)
    assert train(domain=elsewhere, steps=0).config is None


def test_a_start_is_taken_or_refused():
    start = np.array([1.0, -2.0, 3.0])
    equal(train(steps=0, start=start).theta, jnp.asarray(start))
    differs(train(steps=3, start=start).theta, train(steps=3).theta)
    for bad, says in (
        (np.zeros(4), "one array of shape"),
        ({"w": np.zeros(3)}, "w"),
        (start * np.nan, "NaN"),
    ):
        with pytest.raises(ConfigError, match=says):
            train(start=bad)


@pytest.mark.slow
def test_the_moving_average():
    decay, rate = 0.5, 0.1
    thetas = [train(imaml.Optimiser("sgd", rate, schedule="constant"), steps=k).theta for k in range(4)]
    expected = thetas[0]
    for theta in thetas[1:]:
        expected = decay * expected + (1 - decay) * theta
    run = train(imaml.Optimiser("sgd", rate, schedule="constant", average=decay), steps=3)
    np.testing.assert_allclose(run.theta, expected, rtol=1e-14)  # float64


def test_options_are_refused_with_what_was_meant():
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        train(step=3)
    for bad in ({"steps": -1}, {"tasks": 0}, {"seed": 2**32}, {"minutes": 0}, {"patience": 1}, {"keep": 0}):
        with pytest.raises(ConfigError, match=rf"{next(iter(bad))}\b"):
            train(**bad)
    with pytest.raises(ConfigError, match="optimiser="):
        train(3)
    with pytest.raises(ConfigError, match="method="):
        imaml.train(DOMAIN, "imaml")  # type: ignore[arg-type]


def test_tasks_that_fail_are_told_and_a_step_without_any_ends_the_run(tmp_path):
    inner = imaml.GradientDescent(1e200, steps=3)
    method = dataclasses.replace(METHOD, inner=inner)
    with pytest.raises(NumericalError, match="failed numerically"):
        train(method=method, out=tmp_path / "run")
    events = read_events(tmp_path / "run")
    assert events[-1]["reason"] == "failed"
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [0]


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_step_without_a_usable_task_leaves_the_state_as_it_was(average):
    """Its meta-gradient is NaN, which spreads neither to theta nor to the optimiser's memory."""
    method = dataclasses.replace(METHOD, inner=imaml.GradientDescent(1e200, steps=3))
    outer = Outer(optax.adam(0.1), None, average)
    start, key = jax.random.split(jax.random.key(0))
    state = initial_state(DOMAIN, method, outer, start)
    after, report = make_step(method, outer, 4)(DOMAIN, state, key)
    assert not report["metrics"].used.any()
    assert np.isnan(report["gradient_norm"])
    equal(after, state)


def test_a_validation_without_a_finite_score_is_none_and_no_traceback():
    """The last step throws theta beyond what any task can be solved from."""
    far = imaml.Optimiser("sgd", 1e200, schedule="constant")
    run = train(far, steps=1, validate_every=1, validation_tasks=4)
    assert (run.step, run.last.failed) == (1, 4)
    assert np.isnan(run.last.scores["loss"])


def test_a_configuration_goes_to_json_and_back():
    config = train(steps=0).config
    assert isinstance(config, Config)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert load_config(json.dumps(to_json(config)), "here") == config
    for preset in PRESETS.values():
        assert from_json(json.loads(json.dumps(to_json(preset.config)))) == preset.config
    assert first_difference(to_json(config), to_json(config)) is None
    for text, says in (
        ("{", "expected JSON, got an error"),
        ("[]", "tuple"),
        ('{"kind": "Confi"}', "did you mean 'Config'"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_config(text, "here")
    method = dataclasses.replace(
        METHOD, query_loss=lambda phi, theta, batch: DOMAIN.query_loss(phi, theta, batch)
    )
    assert train(method=method, steps=0).config is None  # a loss of one's own is not what JSON would say


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 8
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(how, tmp_path, capsys):
    out, options = tmp_path / "run", {"steps": 6, "checkpoint_every": 2}
    whole = train(out=out, **options)
    damage(out / "checkpoints" / "step-00000006.checkpoint", how)
    capsys.readouterr()
    resumed = train(out=out, resume=True, **options)
    equal(resumed.theta, whole.theta)
    assert "damaged checkpoint of step 6" in capsys.readouterr().err
    events = read_events(out)
    assert any("damaged checkpoint of step 6" in e["message"] for e in events if e["event"] == "warning")
    assert next(e for e in events if e["event"] == "resume")["step"] == 4
    for file in (out / "checkpoints").iterdir():
        damage(file, how)
    with pytest.raises(CheckpointError, match="expected a checkpoint, got damaged ones only"):
        train(out=out, resume=True, **options)


# kill -9, ten times

KILLED = ["train", "sinusoid", "--steps=400", "--tasks=2", "--domain.hidden=4", "--quiet"]
KILLED += ["--method.inner.steps=1", "--method.linear.steps=1", "--training.checkpoint_every=5"]
KILLED += ["--training.validate_every=100", "--training.validation_tasks=2", "--training.test_tasks=0"]


def start(out, cache, *words):
    environment = dict(os.environ) | {
        "PYTHONPATH": str(Path(imaml.__file__).parents[1]),
        "JAX_ENABLE_X64": "0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),  # ten starts need not compile ten times
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    words = [sys.executable, "-m", "imaml", *words, f"--out={out}"]
    with (cache.parent / "stderr").open("w") as errors:
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def written(out, kind):
    """How many events of a kind are in the file, which may end in half a line."""
    try:
        return (out / "events.jsonl").read_text().count(f'"event": "{kind}"')
    except FileNotFoundError:
        return 0


def final(out):
    """Everything that a run ends with, but for how long it took."""
    data = max((out / "checkpoints").iterdir()).read_bytes()
    record = read_record(data)
    note = {k: v for k, v in record["note"].items() if k != "seconds"}
    return read_artefact(out)[0], record["arrays"], note


@pytest.mark.long
def test_kills_at_random_moments_change_nothing(tmp_path):
    cache, out, errors = tmp_path / "cache", tmp_path / "killed", tmp_path / "stderr"
    whole = start(tmp_path / "whole", cache, *KILLED)
    while not written(tmp_path / "whole", "checkpoint") > 1:  # the first steps, after start-up
        assert whole.poll() is None, errors.read_text()
        time.sleep(0.01)
    began = time.monotonic()
    assert whole.wait() == 0, errors.read_text()
    span = (time.monotonic() - began) / 12  # so that all kills come before the run is over

    luck, kills, steps = random.Random(0), 0, []
    while kills < 6:
        begun = (out / "config.json").exists()
        known = written(out, "checkpoint")
        process = start(out, cache, *(["train", "--resume", "--quiet"] if begun else KILLED))
        if kills % 5:  # two of them fall anywhere in start-up, the others where it trains and saves
            while written(out, "checkpoint") < known + 1 + (not begun) and process.poll() is None:
                time.sleep(0.002)
            time.sleep(luck.uniform(0, span))
        else:
            time.sleep(luck.uniform(0, 4))
        if process.poll() is not None:  # it was faster than expected: begin another run
            assert process.returncode == 0, errors.read_text()
            shutil.rmtree(out)
            continue
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert "damaged" not in errors.read_text()
        kills += 1
        steps.append(max(Checkpoints(out / "checkpoints").steps(), default=-1))
    process = start(out, cache, "train", "--resume", "--quiet")
    assert process.wait() == 0, errors.read_text()
    assert (
        "damaged" not in errors.read_text()
    )  # what a kill left half written was never taken for a checkpoint
    assert len(set(steps)) > 3, steps
    (one, tree, note), (other, other_tree, other_note) = final(tmp_path / "whole"), final(out)
    equal(one, other)
    assert tree == other_tree  # names, shapes, dtypes and SHA-256 of every array of the final state
    assert note == other_note


@pytest.mark.slow
def test_muon_orthogonalises_large_matrices_and_leaves_the_rest_to_adam():
    rate, scale = 0.02, 0.25
    shapes = {"first": (9, 40), "middle": (80, 40), "head": (40, 5), "bias": (40,)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), 4), strict=True))
    gradient = {name: jax.random.normal(keys[name], shape, jnp.float32) for name, shape in shapes.items()}
    optimiser = imaml.Optimiser("muon", rate, schedule="constant", adam_scale=scale)
    adam = optax.adam(scale * rate, nesterov=True)
    for theta, part in (
        (gradient, lambda tree: tree),
        (Theta(gradient, gradient), lambda tree: tree.mean),
    ):
        transform = optimiser.build(10)
        updates, _ = transform.update(theta, transform.init(theta), theta)
        singular = np.linalg.svd(np.asarray(part(updates)["middle"]), compute_uv=False)
        singular = singular / (0.2 * rate * 80**0.5)  # all 1 for an orthogonal update of that size
        assert singular.min() > 0.6  # five Newton-Schulz steps bring them to about 1 (Jordan 2024)
        assert singular.max() < 1.3
        expected, _ = adam.update(gradient, adam.init(gradient), gradient)
        for name in ("first", "head", "bias"):
            np.testing.assert_allclose(part(updates)[name], expected[name], rtol=1e-5)  # float32
    np.testing.assert_allclose(updates.log_strength["middle"], expected["middle"], rtol=1e-5)


def test_logarithms_in_theta_step_by_a_rate_of_their_own():
    theta = Theta({"w": jnp.ones(3)}, log_strength={"w": jnp.zeros(())}, log_noise=jnp.zeros(()))
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.3), theta)
    steps = {}
    for scale in (1.0, 20.0):
        transform = imaml.Optimiser("adam", 1e-2, clip=5.0, log_scale=scale).build(10)
        steps[scale], _ = transform.update(gradient, transform.init(theta), theta)
    np.testing.assert_allclose(steps[20.0].mean["w"], steps[1.0].mean["w"])
    np.testing.assert_allclose(steps[20.0].log_strength["w"], 20 * steps[1.0].log_strength["w"], rtol=1e-6)
    np.testing.assert_allclose(steps[20.0].log_noise, 20 * steps[1.0].log_noise, rtol=1e-6)
    plain = imaml.Optimiser("adam", 1e-2, log_scale=20.0).build(10)
    found, _ = plain.update(theta.mean, plain.init(theta.mean), theta.mean)
    np.testing.assert_allclose(found["w"], steps[1.0].mean["w"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "muon", "least_side": 0}, "least_side: expected .*, got 0"),
        ({"name": "muon", "adam_scale": 0.0}, "adam_scale: expected .*, got 0.0"),
        ({"log_scale": -1.0}, "log_scale: expected .*, got -1.0"),
        ({"name": "muon", "momentum": 1.0}, "momentum: expected .*, got 1.0"),
        ({"name": "adam", "weight_decay": 0.1}, "'adamw' or 'muon'"),
    ],
)
def test_optimisers_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        imaml.Optimiser(**options)
