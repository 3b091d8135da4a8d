"""Omniglot: the table of results, what each part of the recipe is worth, and methods after an hour each.

    python -m benchmarks run omniglot --data PATH          # the rows of artefacts/index.json, by protocol
    python -m benchmarks run omniglot_parts --data PATH    # one part of the preset omniglot-head at a time
    python -m benchmarks run omniglot_hour --data PATH     # methods with one network, an hour each
    python -m benchmarks run omniglot_fall --data PATH     # why the comparison's imaml-head falls

Trainings and scores are kept in runs/omniglot_parts and runs/omniglot_hour: the same command resumes.
--only "A; B" trains and scores some of them, and writes no result. All are scored on the same tasks, and
compared task by task.
"""

import hashlib
import json
from dataclasses import replace

import imaml
from benchmarks.harness import ROOT, benchmark, interval
from imaml.compare.variants import ROWS
from imaml.config.method import NewTask
from imaml.config.overrides import overrides, replace_data
from imaml.config.presets import preset
from imaml.training.evaluation import evaluate_theta
from imaml.training.experiment import assemble
from imaml.training.journal import read_events

SETTINGS = ((5, 1), (20, 1))  # ways and shots of new tasks
PARTS = {  # by name: the fields that differ from the preset's
    "omniglot-head": {},
    "strided": {"domain.downsampling": "stride"},
    "60 ways, 9 queries": {"domain.train_ways": "60", "domain.train_queries": "9"},
    "30 ways, 19 queries": {"domain.train_ways": "30", "domain.train_queries": "19"},
    "100 ways, 5 shots": {"domain.train_ways": "100", "domain.train_shots": "5", "domain.train_queries": "1"},
    "no quarter turns": {"domain.rotations": "false"},
    "not aligned": {"domain.aligned": "false"},
    "56 pixels until aligned": {"domain.detail": "2"},
    "not distorted": {"domain.distortion": "0"},
    "distorted more": {"domain.distortion": "1"},
    "no copies": {"domain.copies": "0"},
    "no symmetries": {"domain.symmetries": "false"},
    "statistics of the batch": {"domain.normalisation": "transductive"},
    "no scale": {"domain.scale": "none"},
    "strength not learned": {"method.learned": "none"},
    "cross-entropy": {
        "domain.inner_loss": "cross_entropy",
        "method.inner": "NewtonCG",
        "method.inner.steps": "5",
        "method.inner.linear.steps": "10",
        "method.linear": "CG",
        "method.linear.steps": "10",
    },
    "prototypes": {"method.name": "maml", "method.inner": "Prototypes", "domain.scale": "none"},
    "constant rate": {"optimiser.schedule": "constant"},
    "no average": {"optimiser.average": "0"},
}
REMEDIES = {  # for the row imaml-head of `imaml compare`
    "as it was": {},
    "cosine schedule": {"optimiser.schedule": "cosine"},
    "half the rate": {"optimiser.learning_rate": "0.007"},
    "learned scale": {"domain.scale": "10"},
    "learned strength": {"method.learned": "all"},
    "solved further": {
        "method.inner.steps": "20",
        "method.inner.linear.steps": "50",
        "method.linear.steps": "50",
    },
    "squared loss": {
        "domain.inner_loss": "squared",
        "domain.scale": "10",
        "method.inner": "Newton",
        "method.inner.steps": "1",
        "method.inner.linear": "Inverse",
        "method.linear": "Inverse",
    },
    "40 ways": {"domain.head": "shared", "domain.train_ways": "40", "training.tasks": "1"},
    "running statistics": {"domain.normalisation": "running"},
}
HEAD = {"domain.downsampling": "stride", "optimiser.schedule": "constant"}
METHODS = {  # by name: a preset, a row of `imaml compare` or None, and fields that differ
    "imaml": ("omniglot-5w1s", "imaml", {}),
    "imaml, head": ("omniglot-head", None, HEAD),
    "maml": ("omniglot-5w1s", "maml", {}),
    "anil": ("omniglot-5w1s", "anil", {}),
    "prototypes": ("omniglot-head", None, {**HEAD, **PARTS["prototypes"], **PARTS["60 ways, 9 queries"]}),
}


def changed(config, fields):
    """Returns a configuration with fields set from text."""
    return overrides(config, [(path, text, f"--{path}") for path, text in fields.items()])


def trained(folder, config):
    """Trains, or goes on with what is there; returns theta, and the steps and minutes that training took."""
    learned = assemble(config).train(out=folder, resume=(folder / "config.json").exists())
    if learned.reason == "interrupted":
        raise SystemExit("interrupted; the same command resumes")
    end = [event for event in read_events(folder / "events.jsonl") if event["event"] == "end"][-1]
    return learned.theta, {"steps": end["step"], "minutes": end["seconds"] / 60}


def scores(config, theta, split, tasks, ways, shots):
    """Returns the scores of theta on new tasks of another size, task by task."""
    fields = {"domain.ways": str(ways), "domain.shots": str(shots), "domain.train_ways": "none"}
    domain = changed(config, fields if config.domain.head == "shared" else {}).domain.build()
    found = evaluate_theta(domain, config.method.build(domain), theta, split=split, tasks=tasks, seed=1)
    return {name: found.values[name].tolist() for name in ("accuracy", "accuracy_inductive")}


def measured(run, configs, settings, split, tasks, budget, only):
    """Trains and scores each configuration; unless only some are asked for, adds their paired differences.

    Differences are from the first configuration. ``budget`` names what trainings share, and where they are.
    """
    places = {name: run.kept / budget / named(trained_like(configs, name)) for name in configs}
    base, first = next(iter(configs)), {}
    for name in chosen(configs, only):
        theta, row = trained(places[name], configs[trained_like(configs, name)])
        for ways, shots in settings:
            what = f"{ways}w{shots}s"
            given = configs[name], theta, split, tasks, ways, shots
            values = run.once(f"{budget} {name} {split} {what} {tasks}", scores, *given)
            for score, column in values.items() if not only else ():
                label = f"{what} {score}"
                away = [a - b for a, b in zip(column, first.setdefault(label, column), strict=True)]
                row |= {label: interval(column), f"{label} minus {base}": interval(away)}
        if not only:
            run.add({"name": name, **row}, split=split, tasks=tasks)


def trained_like(configs, name):
    """Returns the first configuration that is trained like another: copies are of new tasks alone."""
    training = {other: changed(config, {"domain.copies": "0"}) for other, config in configs.items()}
    return next(other for other in training if training[other] == training[name])


def named(name):
    """Returns the name of a configuration's folder."""
    return name.replace(", ", "-").replace(" ", "-")


def chosen(names, only):
    """The names asked for, with semicolons between them; all by default."""
    asked = [name.strip() for name in only.split(";") if name.strip()]
    unknown = set(asked) - set(names)
    if unknown:
        raise SystemExit(f"--only: expected some of {'; '.join(names)}, got {'; '.join(unknown)}.")
    return asked or list(names)


@benchmark("omniglot_parts", quick={"steps": 2, "tasks": 2})
def parts(run, data, steps=1500, tasks=1000, only=""):
    """Changes one part of the recipe at a time, with equally many steps; scores are of validation classes."""
    base = replace_data(preset("omniglot-head"), data)
    base = changed(base, {"training.steps": str(steps), "training.validate_every": str(steps)})
    configs = {name: changed(base, fields) for name, fields in PARTS.items()}
    measured(run, configs, SETTINGS, "validation", tasks, f"{steps}-steps", only)


@benchmark("omniglot_hour", quick={"minutes": 0.02, "tasks": 2})
def hour(run, data, minutes=60.0, tasks=1000, only=""):
    """Trains each method at a constant rate and keeps its best validation; scores are of test classes."""
    timed = {"minutes": minutes, "steps": 10**7, "validate_every": 500, "validation_tasks": 300}
    timed |= {"restore_best": "true", "checkpoint_every": 500, "keep": 3}
    timed, configs = {f"training.{key}": str(value) for key, value in timed.items()}, {}
    for name, (base, row, fields) in METHODS.items():
        config = replace_data(preset(base), data)
        config = config if row is None else ROWS[row].config(config, minutes, 0)
        configs[name] = changed(config, fields | timed)
    measured(run, configs, SETTINGS[:1], "test", tasks, f"{minutes:g}-minutes", only)


@benchmark("omniglot_fall", quick={"steps": 20})
def fall(run, data, steps=5500, only=""):
    """Repeats the row imaml-head of the comparison, whose accuracy falls, with one remedy at a time."""
    base = ROWS["imaml-head"].config(replace_data(preset("omniglot-5w1s"), data), None, 0)
    base = changed(base, {"training.steps": str(steps), "training.validate_every": str(max(steps // 11, 1))})
    folders = {name: run.kept / f"{steps}-steps" / named(name) for name in REMEDIES}
    for name in chosen(REMEDIES, only):
        trained(folders[name], changed(base, REMEDIES[name]))
    for name, folder in folders.items() if not only else ():
        events = read_events(folder / "events.jsonl")
        checks = [event for event in events if event["event"] == "validation"]
        curve = {event["step"]: event["scores"]["accuracy"] for event in checks}
        last = [event for event in events if event["event"] == "step"][-1]
        last = {key: last[key] for key in ("inner_residual", "error_estimate", "loss")}
        run.add({"name": name, "best": max(curve.values()), "curve": curve, "last": last})


def configured(entry, learned, data):
    """Returns the configuration that an entry of the index asks for, and its other options by name."""
    given = dict(zip(entry["options"][::2], entry["options"][1::2], strict=True))
    others = {name: given.pop(name) for name in ("--tasks",) if name in given}
    config = replace_data(learned.config, data)
    config = replace(config, domain=config.domain.with_ways(int(given.pop("--ways", config.domain.ways))))
    return changed(
        config, {f"domain.{name.removeprefix('--').replace('-', '_')}": text for name, text in given.items()}
    ), others


def by_protocol(own, others, tasks):
    """Returns the configuration and the number of tasks of a row of the index by protocol."""
    if own.domain.protocol == "people":
        return {"people": (own, min(tasks, int(others.get("--tasks", tasks))))}
    turned = changed(own, {"domain.protocol": "turned"})
    authors = changed(turned, {"domain.queries": str(own.domain.shots)})
    method = authors.method
    if method.adapt is None:
        solving = method.new_task or NewTask(method.inner)
        method = replace(method, new_task=replace(solving, strength=1e-9))
    return {
        "upright": (changed(own, {"domain.protocol": "random"}), tasks),
        "turned": (turned, tasks),
        "authors'": (replace(authors, method=method), min(tasks, 600)),
    }


def scored(config, file, tasks, seed):
    """Returns what an evaluation of an artefact found, as JSON values."""
    domain = config.domain.build()
    given = domain, config.method.build(domain), imaml.load(file).theta
    return evaluate_theta(*given, split="test", tasks=tasks, seed=seed).to_json()


@benchmark("omniglot", quick={"tasks": 2})
def table(run, data, tasks=1000, seed=0):
    """Scores every row of artefacts/index.json, where it is not of the study with people, by three protocols.

    "upright" shows test classes as they were drawn; "turned" by random quarters, as published tests do. That
    of the authors of implicit MAML is turned, too: it has as many query images as support images, 600 tasks,
    no strength on new tasks where the whole network adapts, and counts the transductive accuracy.

    The same command goes on where it was interrupted, and keeps scores in runs/omniglot.
    """
    asked = {}
    for row, entry in json.loads((ROOT / "artefacts" / "index.json").read_text()).items():
        own, others = configured(entry, imaml.load(ROOT / entry["file"]), data)
        asked |= {(how, row): (entry, *what) for how, what in by_protocol(own, others, tasks).items()}
    first = lambda item: item[0][0] not in ("people", "upright")  # noqa: E731
    size = lambda item: item[1][1].domain.ways * item[1][1].domain.shots  # noqa: E731
    ordered = sorted(asked.items(), key=lambda item: (first(item), size(item)))  # the slowest last
    for (protocol, row), (entry, config, count) in ordered:
        file = ROOT / entry["file"]
        content = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        key = f"{row} {protocol} {config.domain.copies} {count} {seed} {content}"
        found = run.once(key, scored, config, file, count, seed)
        run.add({"row": row, "file": entry["file"], "protocol": protocol, **found}, tasks=tasks, seed=seed)
