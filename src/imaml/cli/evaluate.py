"""`imaml evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..core.errors import ConfigError
from .options import Count, Flag, Reading, Whole, at_least, print_json, whole, with_options
from .own_tasks import object_at
from .startup import prepare_jax

Split = Literal["train", "validation", "test"]


def evaluate_command(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *others: Annotated[str, Parameter(name="NAME=OTHER", negative=())],
    split: Split = "test",
    tasks: Annotated[int | None, Parameter(validator=at_least(2), converter=whole)] = None,
    ways: Whole = None,
    shots: Whole = None,
    queries: Whole = None,
    copies: Annotated[int | None, Parameter(validator=at_least(0), converter=whole)] = None,
    query_copies: Annotated[int | None, Parameter(validator=at_least(0), converter=whole)] = None,
    protocol: Literal["random", "turned", "people"] | None = None,
    seed: Count = 0,
    data: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    reading: Reading = Reading(),
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
        tasks: Number of tasks (default: 1000; if the number of tasks is fixed, one to 20 draws of each).
        ways: Classes of each task (default: as in the run); needs a run with --domain.head=shared.
        shots: Support examples of each task (default: as in the run); short for --domain.shots.
        queries: Query examples of each task (default: as in the run); short for --domain.queries.
        copies: Distorted copies of each support image that a task also learns from; short for
            --domain.copies.
        query_copies: Distorted copies of each query image; probabilities are averaged over them. Short for
            --domain.query_copies.
        protocol: How the tasks of Omniglot are drawn: "random"; "turned", the same with each class turned by
            a random multiple of 90 degrees, as in published results; or "people", like the tasks that people
            were given (Lake et al. 2015): classes of one alphabet, the support set drawn by one person, the
            query set by another.
        seed: Random seed of the tasks.
        data: Images or table to score on instead of the run's own data. A run on characters is scored on
            Omniglot. All tasks of another table are scored.
        model: The model that the run was fitted with if it is your own, FILE.py:NAME. This executes the file.
        loss: Your own loss, in the same form.
        reading: How a new table is read.
        json: Print JSON.
    """
    prepare_jax()
    import jax

    from ..predict import load
    from ..training.evaluation import evaluate_theta, same_tasks, usual
    from ..training.intervals import with_coverage
    from ..training.step import devices_mesh

    brought = {"model": object_at(model, "--model"), "loss": object_at(loss, "--loss")}
    learned, beside = load(run, **brought), {}
    for word in others:
        name, _, file = ("", "", word) if Path(word).exists() or "=" not in word else word.partition("=")
        other = load(file, **brought)
        name = name or other.config.method.name
        if name in beside:
            raise ConfigError(
                f"evaluate: expected runs with different names, got {name!r} twice. "
                f"Hint: name one, as in second={file}."
            )
        beside[name] = other
    runs, mesh = [learned, *beside.values()], devices_mesh(len(jax.devices()))
    recipes = [one.config.domain if data is None else one.config.domain.scored_on(data) for one in runs]
    recipes = [recipe if ways is None else recipe.with_ways(ways) for recipe in recipes]
    recipes = [
        with_options(
            recipe,
            shots=shots,
            queries=queries,
            copies=copies,
            query_copies=query_copies,
            protocol=protocol,
            **vars(reading),
        )
        for recipe in recipes
    ]
    domains = [recipe.build() for recipe in recipes]
    count = usual(domains[0], split) if tasks is None else tasks
    for word, domain in zip(others, domains[1:], strict=True):
        if not same_tasks(domains[0], domain, split):
            raise ConfigError(
                f"evaluate: expected runs that draw the same tasks as {run}, got {word}. "
                "Hint: compare runs of one domain with the same settings."
            )
    result, *rest = (
        evaluate_theta(
            domain,
            one.config.method.build(domain, mesh),
            one.theta,
            split=split,
            tasks=count,
            seed=seed,
            alone=one is learned,
        )
        for one, domain in zip(runs, domains, strict=True)
    )
    result, recipe = result.beside(dict(zip(beside, rest, strict=True))), recipes[0]
    result = with_coverage(result, learned, domains[0])
    own = domains[0] if data is None else recipe.without_data()  # of other data it would be no fit
    about, text = own.summary(learned.theta, learned.method.problem)
    if json:
        print_json({**result.to_json(), **about, "data": recipe.data_name, "run": run})
        return
    print(result)
    if text:
        print(text)
