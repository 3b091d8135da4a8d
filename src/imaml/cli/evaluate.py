"""`imaml evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from .options import Arguments
from .startup import prepare_jax


def evaluate_command(words: Sequence[str]) -> int:
    """imaml evaluate."""
    arguments = Arguments("evaluate", words, ("split", "tasks", "seed", "data"), ("json",))
    arguments.take(1, 99, "one run or artefact, and others to compare it with: RUN [NAME=OTHER ...]")
    path, *more = arguments.positional
    tasks, seed = arguments.whole("tasks", 1000, 2), arguments.whole("seed", 0)
    split = arguments.values.get("split", "test")
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"--split {split}: accepted are train, validation and test.")
    prepare_jax()
    import jax

    from ..predict import load
    from ..training.evaluation import evaluate_theta, same_tasks
    from ..training.step import devices_mesh

    data, mesh = arguments.values.get("data"), devices_mesh(len(jax.devices()))

    def recipe_of(learner: Any) -> Any:
        recipe = learner.config.domain
        return recipe if data is None else recipe.scored_on(data)

    def scored(learner: Any, domain: Any) -> Any:
        method = learner.config.method.build(domain, mesh)
        return evaluate_theta(domain, method, learner.theta, split=split, tasks=tasks, seed=seed)

    learned = load(path)
    recipe = recipe_of(learned)
    domain, others = recipe.build(), {}
    for word in more:
        name, equals, file = ("", "", word) if Path(word).exists() else word.partition("=")
        other = load(file if equals else word)
        name = name if equals else other.config.method.name
        if name in others:
            raise ConfigError(
                f"evaluate: two other runs are called {name!r}; name them, as in second={file or word}."
            )
        its = recipe_of(other).build()
        if not same_tasks(domain, its, split):
            raise ConfigError(
                f"evaluate: {file or word} was not learned for the tasks of {path}; accepted are runs whose "
                "domain draws the same ones, so that differences are of the same tasks."
            )
        others[name] = scored(other, its)
    result = scored(learned, domain).beside(others)
    about, text = recipe.without_data().summary(learned.theta, learned.method.problem)
    if "json" in arguments.flags:
        about |= {"data": recipe.data_name, "run": str(path)}
        print(json.dumps({**result.to_json(), **about}, allow_nan=False))
        return 0
    print(result)
    if text:
        print(text)
    return 0
