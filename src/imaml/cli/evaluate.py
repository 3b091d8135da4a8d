"""`imaml evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ..core.errors import ConfigError
from .options import Count, Flag, Several, print_json
from .startup import prepare_jax

if TYPE_CHECKING:
    from ..domains.base import Domain
    from ..domains.recipes import DomainRecipe
    from ..predict import Learner
    from ..training.evaluation import Evaluation

Split = Literal["train", "validation", "test"]


def evaluate_command(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *others: Annotated[str, Parameter(name="NAME=OTHER", negative=())],
    split: Split = "test",
    tasks: Several = 1000,
    seed: Count = 0,
    data: str | None = None,
    json: Flag = False,
) -> None:
    """Score a trained run on new tasks, before and after adaptation.

    Adapts to random tasks of a split and scores their query sets, with 95 % intervals over tasks. Few-shot
    runs have two scores: transductive, where the network normalises by the query batch's own statistics, as
    in the literature, and inductive, where it normalises by the support set's.

    Args:
        run: Run directory or artefact.
        others: Other runs to score on the same tasks, for example maml=runs/maml. Their difference from RUN
            is paired, task by task.
        split: Split that the tasks come from.
        tasks: Number of tasks.
        seed: Random seed of the tasks.
        data: Images or table to score on instead of the run's own data. A run on characters is scored on
            Omniglot.
        json: Print JSON.
    """
    prepare_jax()
    import jax

    from ..predict import load
    from ..training.evaluation import evaluate_theta, same_tasks
    from ..training.step import devices_mesh

    mesh = devices_mesh(len(jax.devices()))

    def recipe_of(learner: Learner) -> DomainRecipe:
        recipe = learner.config.domain
        return recipe if data is None else recipe.scored_on(data)

    def scored(learner: Learner, domain: Domain) -> Evaluation:
        method = learner.config.method.build(domain, mesh)
        return evaluate_theta(domain, method, learner.theta, split=split, tasks=tasks, seed=seed)

    learned = load(run)
    recipe = recipe_of(learned)
    domain, scores = recipe.build(), {}
    for word in others:
        name, equals, file = ("", "", word) if Path(word).exists() else word.partition("=")
        other = load(file if equals else word)
        name = name if equals else other.config.method.name
        if name in scores:
            raise ConfigError(
                f"evaluate: expected runs with different names, got {name!r} twice. "
                f"Hint: name one, as in second={file or word}."
            )
        its = recipe_of(other).build()
        if not same_tasks(domain, its, split):
            raise ConfigError(
                f"evaluate: expected runs that draw the same tasks as {run}, got {file or word}. "
                "Hint: compare runs of one domain with the same settings."
            )
        scores[name] = scored(other, its)
    result = scored(learned, domain).beside(scores)
    about, text = recipe.without_data().summary(learned.theta, learned.method.problem)
    if json:
        print_json({**result.to_json(), **about, "data": recipe.data_name, "run": run})
        return
    print(result)
    if text:
        print(text)
