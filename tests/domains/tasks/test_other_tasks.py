"""Tasks that a run was not fitted on: matched by name, refused where they differ, never read by position."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.core.errors import ConfigError, DataError
from imaml.domains.tasks.build import domain_of
from imaml.domains.tasks.collection import Tasks
from imaml.domains.tasks.layout import ArraySpec
from imaml.domains.tasks.sources import TasksFile, read_columns

pytestmark = pytest.mark.usefixtures("ranks_mixed")
KEY = jax.random.key(0)


def frame(people=12, seed=0):
    """Rows of people: two numbers, a text, an offset, and a target that follows from them without noise."""
    rng = np.random.default_rng(seed)
    who, n = np.repeat(np.arange(people), 8), 8 * people
    a, b, offset = rng.normal(size=n), rng.normal(3, 2, n), rng.normal(0, 10, n)
    colour = rng.permutation(np.tile(["blue", "red"], n // 2)).tolist()
    return {"who": who, "a": a, "b": b, "colour": colour, "o": offset, "y": 2 * a - b + offset}


def tasks_of(columns, **options):
    return Tasks.from_frame(columns, "who", "y", offset="o", **options)


def rows(columns, flags):
    return {name: np.asarray(column)[flags] for name, column in columns.items()}


FRAME = frame()


@pytest.fixture(scope="module")
def run():
    """A fit of one step: what is tested here does not depend on what was learned."""
    with jax.numpy_rank_promotion("allow"):
        options = {"shots": 4, "strength": 1.0, "steps": 1, "pretrain": 0, "validation": 0}
        return imaml.fit(tasks_of(FRAME), "linear", **options, progress=False)


def test_offsets_are_in_units_of_the_target(run):
    predictor = run.adapt(rows(FRAME, FRAME["who"] == 0))
    asked = {"a": [0.0, 0.0], "b": [1.0, 1.0], "colour": ["red", "red"], "o": [0.0, 1.0]}
    np.testing.assert_allclose(np.diff(predictor.predict(asked)), 1.0, rtol=1e-4)
    interval = predictor.predict_interval(asked)
    np.testing.assert_allclose(np.diff(interval.low), 1.0, rtol=1e-4)
    # The target is linear, offset included, so that one linear model for all tasks makes no error.
    found = run.domain.baselines(run.domain.sample(KEY, "test"))
    assert float(found["one linear model for all tasks"]) < 1e-3


def test_a_written_task_has_the_offsets_that_were_given(run, tmp_path):
    run.domain.write(run.domain.sample(KEY, "test"), tmp_path)
    written = np.load(tmp_path / "query.npz")["o"]
    np.testing.assert_allclose(np.abs(written[:, None] - FRAME["o"]).min(axis=1), 0, atol=1e-4)


def test_the_offset_of_two_classes_is_that_of_the_second_and_none_of_the_indicators():
    y = np.where(FRAME["a"] > 0, "b", "a")
    given = {"x": np.stack([FRAME["a"], FRAME["b"]], 1), "y": y, "groups": FRAME["who"]}
    plain, shifted = (
        domain_of(Tasks.from_arrays(**given, offset=offset), "linear", "binary")[0]
        for offset in (None, FRAME["o"])
    )
    name = "one linear model for all tasks"
    assert (
        plain.baselines(plain.sample(KEY, "test"))[name]
        == shifted.baselines(shifted.sample(KEY, "test"))[name]
    )


def test_each_task_of_a_frame_is_learned_from_its_own_rows(run):
    learner = run.learner
    few, asked = (rows(FRAME, (np.arange(96) % 8 < 4) == first) for first in (True, False))
    with pytest.raises(DataError, match=r"adapt: expected rows of one task, got 12 \('who': 0, .*each task"):
        learner.adapt(few)
    order = np.random.default_rng(1).permutation(48)
    found = learner.predict(rows(few, order), rows(asked, order))
    alone = np.concatenate(
        [
            learner.adapt(rows(few, few["who"] == who)).predict(rows(asked, asked["who"] == who))
            for who in range(12)
        ]
    )
    np.testing.assert_allclose(found, alone[order], rtol=1e-5)
    domain = learner.config.domain.without_data()
    answers = domain.answers_each(learner.adapt, rows(few, few["who"] > 0), rows(asked, order))
    assert [row["row"] for row in answers.rows] == list(range(1, 49))
    assert [row["who"] for row in answers.rows] == asked["who"][order].tolist()
    there = asked["who"][order] > 0
    np.testing.assert_allclose(
        [row["prediction"] for row in np.array(answers.rows)[there]], found[there], rtol=1e-5
    )
    assert answers.note() == "1 of 12 tasks have no support rows, and are predicted as the population (0)"
    assert answers.lines[0] == "row\twho\tprediction"
    with pytest.raises(
        DataError, match="support: expected a column 'who', as the query has rows of 12 tasks"
    ):
        learner.predict({name: few[name] for name in few if name != "who"}, asked)


def test_columns_of_other_frames_are_matched_by_name(run):
    recipe = run.config.domain
    wanted = recipe.with_tasks(tasks_of(FRAME))
    mixed = {name: FRAME[name] for name in ("y", "colour", "b", "who", "a", "o")}
    np.testing.assert_array_equal(recipe.with_tasks(tasks_of(mixed)).inputs, wanted.inputs)
    red = recipe.with_tasks(tasks_of({**FRAME, "colour": ["red"] * 96}))
    names = recipe.columns[2:]
    values = recipe.layout.inputs[0].units(np.asarray(red.inputs))
    np.testing.assert_allclose(values[:, names.index("colour=red")], 1, atol=1e-6)
    np.testing.assert_allclose(values[:, names.index("colour=blue")], 0, atol=1e-6)
    green = {**FRAME, "colour": ["green" if c == "red" else c for c in FRAME["colour"]]}
    with pytest.raises(DataError, match=r"expected the columns a, b, colour=blue, colour=red.*colour=green"):
        recipe.with_tasks(tasks_of(green))
    with pytest.raises(DataError, match=r"expected the target y, as the run was fitted on, got a"):
        recipe.with_tasks(Tasks.from_frame(FRAME, "who", "a", offset="o"))


def test_offsets_are_asked_for_and_refused(run):
    with pytest.raises(DataError, match=r"expected an offset for each row, as the run .*, got none"):
        run.config.domain.with_tasks(Tasks.from_frame({k: FRAME[k] for k in FRAME if k != "o"}, "who", "y"))
    x, y = FRAME["a"], FRAME["y"]
    recipe = domain_of(Tasks.from_arrays(x, y, FRAME["who"]), "linear", shots=4)[0].recipe
    with pytest.raises(DataError, match=r"expected no offsets, as the run was fitted on, got some"):
        recipe.with_tasks(Tasks.from_arrays(x, y, FRAME["who"], offset=FRAME["o"]))


def test_given_supports_are_those_of_an_evaluation():
    recipe = domain_of(Tasks.from_arrays(FRAME["a"], FRAME["y"], FRAME["who"]), "linear", shots=4)[0].recipe
    pairs = [((np.zeros(n), np.zeros(n)), (np.ones(9), np.full(9, 7.0))) for n in (3, 6, 4)]
    domain = recipe.with_tasks(Tasks.from_list(pairs))
    for number in range(3):
        task = domain.gather(domain.draw_in_turn(KEY, "test", number))
        support, query = (domain.units(np.asarray(part.targets))[part.weights > 0] for part in task)
        np.testing.assert_allclose(support, np.zeros((3, 6, 4)[number]), atol=1e-5)
        np.testing.assert_allclose(query, np.full(9, 7.0), rtol=1e-5)
    assert not domain.repeats


def test_support_sets_of_a_network_that_normalises_are_of_one_size():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    y, model = rng.normal(size=60), imaml.Conv4(1, 4, 8, 1)
    recipe = domain_of(Tasks.from_arrays(images, y, np.repeat(np.arange(10), 6)), model, shots=3)[0].recipe
    sizes = np.repeat(np.arange(12), [3] * 4 + [6] * 4 + [7] * 4)
    found = np.zeros((len(sizes), 8, 8, 1), np.uint8)
    with pytest.warns(RuntimeWarning, match="4 of 12 tasks are excluded, as they have fewer than 4 rows"):
        domain = recipe.with_tasks(Tasks.from_arrays(found, np.zeros(len(sizes)), sizes))
    assert set(np.asarray(domain.supports)[np.asarray(domain.splits["test"])].tolist()) == {3}
    pairs = [((found[:n], np.zeros(n)), (found[:2], np.zeros(2))) for n in (2, 3)]
    with pytest.raises(DataError, match=r"expected support sets of the same size.*got 2 to 3 rows"):
        recipe.with_tasks(Tasks.from_list(pairs))


def test_rows_that_count_zero_times_are_none():
    weights = np.where(FRAME["who"] % 2, 1.0, 0.0)
    weights[1] = 2.0
    split = {"train": [1, 3, 2], "test": [0, 5, 4]}
    with pytest.warns(RuntimeWarning, match="6 of 12 groups are in no split"):
        tasks = Tasks.from_arrays(FRAME["a"], FRAME["y"], FRAME["who"], weights=weights, split=split)
    assert tasks.names == (0, 1, 3, 5, 7, 9, 11)
    assert tasks.counts.tolist() == [1, 8, 8, 8, 8, 8, 8]
    assert tasks.weights.min() > 0
    np.testing.assert_array_equal(tasks.inputs[0][:1], FRAME["a"][1:2])
    assert {part: len(found) for part, found in tasks.splits(0.2, 0.2, 0).items()} == {
        "train": 2,
        "validation": 0,
        "test": 2,
    }
    with pytest.raises(DataError, match="weights: expected some above 0, got 0 for all rows"):
        Tasks.from_arrays(FRAME["a"], FRAME["y"], FRAME["who"], weights=0 * weights)


def test_a_loss_of_one_s_own_sees_outputs_and_targets_of_one_shape():
    tasks = Tasks.from_arrays(FRAME["a"], 3 * FRAME["a"], FRAME["who"])
    model = (lambda key: {"w": jnp.ones(1)}, lambda parameters, x: x[:, 0] * parameters["w"])
    loss = lambda outputs, targets: jnp.sum((outputs - targets) ** 2, axis=1)  # noqa: E731
    domain = domain_of(tasks, model, loss, shots=4)[0]
    task = domain.sample(KEY, "test")
    phi = {"w": jnp.ones(1)}
    kept = np.asarray(task.query.inputs[:, 0], np.float64)[np.asarray(task.query.weights) > 0]
    x = domain.recipe.layout.inputs[0].units(kept[:, None])[:, 0]
    wanted = np.mean((kept - 3 * x) ** 2)
    np.testing.assert_allclose(domain.query_loss(phi, phi, task.query), wanted, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"shape \(3,\), got shape \(3, 1\)"):
        domain_of(tasks, model, lambda outputs, targets: (outputs - targets) ** 2, shots=4)


def test_whole_numbers_that_int32_cannot_hold_are_refused():
    spec = ArraySpec((1,), "int")
    assert spec.check(np.array([2**31 - 1, -(2**31)]), "x").tolist() == [[2**31 - 1], [-(2**31)]]
    for wrong in (np.array([2**31]), np.array([2**32 + 5], np.uint64)):
        with pytest.raises(DataError, match="x: expected whole numbers that int32 can hold"):
            spec.check(wrong, "x")


def test_mapped_tasks_are_no_longer_those_of_their_file():
    tasks = replace(Tasks.from_arrays(FRAME["a"], FRAME["y"], FRAME["who"]), file=TasksFile("rows.npz"))
    assert tasks.map(lambda x: 2 * x).file is None


def test_a_file_and_the_frame_that_pandas_reads_from_it_mean_the_same(tmp_path):
    import pandas as pd

    path = tmp_path / "rows.csv"
    path.write_text("who,flag,answer,n\na,TRUE,True,1\na,FALSE,False,2.5\nb,TRUE,True,3\nb,TRUE,False,4\n")
    ours, theirs = read_columns(path), pd.read_csv(path)
    for name in ("flag", "answer", "n"):
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name])
    made = [Tasks.from_frame(found, "who", "answer", ["flag", "n"]) for found in (ours, theirs)]
    assert made[0].frame == made[1].frame
    np.testing.assert_array_equal(made[0].targets, made[1].targets)


def test_ids_that_are_equal_as_numbers_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("who,a,y\n007,1,2\n007,2,3\n7,1,2\n7,2,4\n")
    with pytest.raises(DataError, match="column 'who': expected an id for each task, got '007' and '7'"):
        TasksFile(str(path), "frame", "who", ("y",)).read()


def test_files_of_other_forms_are_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("who;größe;y\na;1,5;2\na;2;3,25\n".encode("cp1252"))
    file = TasksFile(str(path), "frame", "who", ("y",), encoding="cp1252", decimal=",")
    tasks = file.read()
    assert tasks.frame.features == ("größe",)
    assert tasks.targets.tolist() == [2, 3.25]
    path.write_text("who;a;y\na;1.234;2\na;2;3\n")
    with pytest.raises(DataError, match=r"column 'a': expected numbers with a decimal comma.*got '1\.234'"):
        replace(file, encoding="utf-8").read()


def test_of_more_rows_than_a_query_set_takes_random_ones_are_asked():
    x = np.arange(10 * 200.0)
    domain = domain_of(
        Tasks.from_arrays(x, x, np.repeat(np.arange(10), 200)), "linear", shots=5, order="first"
    )[0]
    first, second = (domain.draw_in_turn(jax.random.key(seed), "test", 0) for seed in (1, 2))
    start = int(domain.first[first.group])
    for drawn in (first, second):
        assert drawn.support.tolist() == list(range(start, start + 5))
        assert len(set(drawn.query.tolist())) == 64
        assert min(drawn.query) >= start + 5
        assert max(drawn.query) < start + 200
    assert domain.repeats
    assert set(first.query.tolist()) != set(second.query.tolist())
    assert not domain.draws_all("train")
    # Of a group whose rows all fit they stay in order.
    x = np.arange(205.0)
    few = domain_of(
        Tasks.from_arrays(x, x, [0] * 200 + [1] * 5), "linear", shots=2, order="first", validation=0, test=0
    )
    small = [few[0].draw_in_turn(KEY, "train", i) for i in (0, 1)]
    one = next(d for d in small if int(few[0].counts[d.group]) == 5)
    assert (one.query[:3] - int(few[0].first[one.group])).tolist() == [2, 3, 4]


def test_all_rows_are_those_of_a_likelihood():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(900, 1)), np.repeat(np.arange(3), 300)
    y = rng.poisson(np.exp(0.5 * x[:, 0]))
    newton = {"optimiser": imaml.Optimiser("newton"), "adapt": "layer1/bias", "validation": 0, "test": 0}
    options = {**newton, "steps": 2, "progress": False, "standardise": False}
    run = imaml.fit(Tasks.from_arrays(x, y, g), "linear", "poisson", **options)
    support, query = run.domain.sample(KEY, "train")
    assert support.weights.sum() + query.weights.sum() == 300
    with pytest.raises(
        ConfigError, match="queries: expected None with Newton's method, which takes all rows"
    ):
        imaml.fit(Tasks.from_arrays(x, y, g), "linear", "poisson", **options, queries=5)
    part = imaml.fit(
        Tasks.from_arrays(x, y, g), "linear", "poisson", steps=1, pretrain=0, strength=1.0, progress=False
    )
    with pytest.raises(ConfigError, match="likelihood: expected a run whose tasks are drawn with all"):
        part.likelihood()


def test_ways_are_of_episodes_alone():
    with pytest.raises(
        ConfigError, match="fit: ways: expected None, as tasks have targets of their own, got 3"
    ):
        domain_of(Tasks.from_arrays(FRAME["a"], FRAME["y"], FRAME["who"]), "linear", ways=3)


def test_intervals_of_counts_are_of_their_own_row_and_about_the_prediction():
    y = np.random.default_rng(0).poisson(3.0, 96)
    domain = domain_of(Tasks.from_arrays(FRAME["a"], y, FRAME["who"]), "linear", "poisson", shots=4)[0]
    outputs, spread = jnp.linspace(0.0, 2.0, 5)[:, None], 0.1 * jnp.ones((5, 1, 1))
    mean, low, high = domain.interval(None, outputs, spread, 0.9, None)
    np.testing.assert_allclose(mean, np.exp(outputs[:, 0]), rtol=1e-5)
    for i in range(5):
        alone = domain.interval(None, outputs[i : i + 1], spread[:1], 0.9, None)
        np.testing.assert_array_equal([alone[1][0], alone[2][0]], [low[i], high[i]])


def test_a_file_that_has_gained_or_lost_tasks_is_no_longer_that_of_the_run(tmp_path):
    """Splits are drawn anew: tasks that were learned from would be test tasks."""
    place = tmp_path / "grow.csv"

    def written(people, order=1):
        lines = [f"p{who},{x},{who + x}" for who in range(people)[::order] for x in range(4)]
        place.write_text("\n".join(["who,x,y", *lines]))

    written(30)
    file = TasksFile(str(place), "frame", "who", ("y",), ("x",))
    domain, _ = domain_of(file.read(), "linear", shots=2)
    again = domain.recipe.build()
    for split, numbers in domain.splits.items():
        np.testing.assert_array_equal(again.splits[split], numbers)
    moved = domain.recipe.with_data(str(place.rename(tmp_path / "moved.csv")))
    assert moved.build().size("test") == 6
    for people, order, now in ((31, 1, "19/6/6"), (29, 1, "17/6/6"), (30, -1, "18/6/6")):
        written(people, order)
        with pytest.raises(DataError, match=rf"grow.csv: expected .* 18/6/6\), got others \({now}\)"):
            domain.recipe.build()
        assert domain.recipe.scored_on(str(place)).build().size("test") == people  # all count as new
    old = replace(domain.recipe, file=replace(domain.recipe.file, divided=""))  # of an earlier version
    assert old.build().size("test") == 6
    given = Tasks.from_arrays(FRAME["a"], FRAME["y"], FRAME["who"])
    assert domain_of(given, "linear", shots=2)[0].recipe.file is None
