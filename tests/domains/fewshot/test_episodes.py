"""What few-shot episodes promise, and what recipes of domains refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers import closed_forms
from imaml.core.errors import ConfigError, DataError
from imaml.domains.base import SPLITS
from imaml.domains.fewshot.domain import FewShotRecipe, table_of
from imaml.domains.fewshot.episodes import distinct, then, turn
from imaml.domains.fewshot.images import Images
from imaml.training.evaluation import evaluate_theta
from imaml.training.journal import json_values

pytestmark = pytest.mark.usefixtures("ranks_mixed")


def table(classes=24, images=6, side=28, groups=None):
    """Random drawings; the first two pixels of each hold its class and its number; every class a group."""
    pixels = np.random.default_rng(0).integers(0, 256, (classes * images, side, side, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.repeat(np.arange(classes), images)
    pixels[:, 0, 1, 0] = np.tile(np.arange(images), classes)
    first = np.arange(classes) * images
    names = tuple(f"class{i}" for i in range(classes))
    splits = {"train": range(12), "validation": range(12, 18), "test": range(18, 24)}
    splits = {name: np.array(ids, np.int32) for name, ids in splits.items()}
    return Images(pixels, first, np.full(classes, images), names, groups or names, splits)


DOMAINS = {
    "characters": lambda: imaml.characters(ways=3, shots=1, queries=2, filters=4),
    "table": lambda: imaml.image_tasks(table(), ways=3, shots=2, queries=2, filters=4),
}
KEYS = jax.random.split(jax.random.key(3), 300)
DRAW = jax.jit(lambda d, keys, split: jax.vmap(lambda k: d.draw(k, split))(keys), static_argnums=2)


@pytest.mark.parametrize("split", SPLITS)
def test_splits_of_few_shot_domains_share_no_class(split):
    for make in ("characters", "table"):
        splits = DOMAINS[make]().splits
        ids = set(np.asarray(splits[split]).tolist())
        assert len(ids) == splits[split].shape[0]
        for other in SPLITS:
            assert other == split or not ids & set(np.asarray(splits[other]).tolist())


@pytest.mark.parametrize("make", ["characters", "table"])
def test_an_episode_has_distinct_classes_and_distinct_images(make):
    domain = DOMAINS[make]()
    drawn = DRAW(domain, KEYS, "train")
    virtual = np.asarray(drawn.classes) * 4 + np.asarray(drawn.turns)
    assert all(len(set(row)) == 3 for row in virtual.tolist())
    assert set(np.unique(drawn.turns)) == {0, 1, 2, 3}
    examples = np.asarray(drawn.examples).reshape(-1, drawn.examples.shape[-1])
    assert all(len(set(row)) == len(row) for row in examples.tolist())
    tested = DRAW(domain, KEYS, "test")
    assert not np.any(tested.turns)  # quarter turns are classes in training only
    assert all(len(set(row)) == 3 for row in np.asarray(tested.classes).tolist())


def test_labels_and_images_of_an_episode_belong_together():
    domain = imaml.image_tasks(table(), ways=4, shots=2, queries=3, rotations=False, filters=4)
    key = jax.random.key(5)
    drawn = domain.draw(key, "train")
    task = domain.gather(drawn)
    classes = np.rint(np.asarray(task.support.images[:, 0, 0, 0]) * 255).astype(int)
    np.testing.assert_array_equal(classes, np.asarray(drawn.classes)[task.support.labels])
    classes = np.rint(np.asarray(task.query.images[:, 0, 0, 0]) * 255).astype(int)
    np.testing.assert_array_equal(classes, np.asarray(drawn.classes)[task.query.labels])
    numbers = np.rint(np.asarray(task.query.images[:, 0, 1, 0]) * 255).astype(int).reshape(4, 3)
    np.testing.assert_array_equal(numbers, np.asarray(drawn.examples)[:, 2:])
    np.testing.assert_array_equal(task.query.reference, task.support.images)
    assert task.support.images.dtype == jnp.float32
    assert task.support.labels.dtype == jnp.int32


def test_distinct_numbers_are_uniform():
    number, wanted, draws = 7, 3, 21_000
    keys = jax.random.split(jax.random.key(1), draws)
    rows = np.asarray(jax.jit(jax.vmap(lambda k: distinct(k, number, wanted)))(keys))
    assert rows.min() == 0
    assert rows.max() == number - 1
    assert all(len(set(row)) == wanted for row in rows.tolist())
    counts = np.unique(rows @ np.array([49, 7, 1]), return_counts=True)[1]  # each ordered triple, 210 of them
    assert counts.size == 7 * 6 * 5
    expected = draws / 210
    chi2 = float(np.sum((counts - expected) ** 2 / expected))
    assert chi2 < 290  # 209 degrees of freedom: mean 209, deviation 20.4; four deviations
    everything = np.asarray(distinct(jax.random.key(0), 5, 5))
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_turns_are_quarters_anticlockwise():
    image = jnp.arange(2 * 3 * 3, dtype=jnp.float32).reshape(1, 2, 3, 3, 1)[0, :, :, :, :]
    for turns in range(4):
        np.testing.assert_array_equal(turn(image, jnp.asarray(turns)), np.rot90(image, turns, axes=(1, 2)))


def test_eight_symmetries_and_their_composition():
    image = jnp.arange(9, dtype=jnp.float32).reshape(1, 3, 3, 1)
    shown = [turn(image, jnp.asarray(k)) for k in range(8)]
    assert len({tuple(np.ravel(x).tolist()) for x in shown}) == 8
    np.testing.assert_array_equal(shown[4], image[:, ::-1])
    for first in range(8):
        for last in range(8):
            both = then(jnp.asarray(first), jnp.asarray(last))
            np.testing.assert_array_equal(turn(image, both), turn(shown[first], jnp.asarray(last)))


def test_a_task_is_in_one_symmetry_as_a_whole():
    options = {"ways": 3, "shots": 1, "queries": 2, "filters": 4, "symmetries": True}
    domain = imaml.image_tasks(table(), rotations=False, **options)
    turns = np.asarray(DRAW(domain, KEYS, "train").turns)
    assert np.all(turns == turns[:, :1])
    assert set(np.unique(turns)) == set(range(8))
    assert not np.any(DRAW(domain, KEYS, "validation").turns)
    drawn = DRAW(imaml.image_tasks(table(), **options), KEYS, "train")
    assert all(len(set(row)) == 3 for row in (np.asarray(drawn.classes) * 8 + drawn.turns).tolist())
    assert np.all(np.asarray(drawn.turns) // 4 == np.asarray(drawn.turns)[:, :1] // 4)  # mirrored all or none


GROUPS = tuple("abcabcabcabd" + "b" * 12)  # of the train split's classes: 4 a, 4 b, 3 c, 1 d, in turn


@pytest.mark.slow
def test_tasks_within_one_group():
    options = {"ways": 4, "queries": 2, "filters": 4, "rotations": False}
    domain = imaml.image_tasks(table(groups=GROUPS), within=1.0, **options)
    drawn = np.asarray(DRAW(domain, KEYS, "train").classes)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    groups = np.array(GROUPS)[drawn]
    assert np.all(groups == groups[:, :1])  # and never of c or d, which have too few
    share = np.mean(groups[:, 0] == "a")
    assert abs(share - 0.5) < 4 * 0.5 / len(KEYS) ** 0.5  # four standard deviations
    assert set(np.unique(drawn).tolist()) == {0, 3, 6, 9, 1, 4, 7, 10}
    half = np.asarray(
        DRAW(imaml.image_tasks(table(groups=GROUPS), within=0.5, **options), KEYS, "train").classes
    )
    none = np.asarray(DRAW(imaml.image_tasks(table(groups=GROUPS), **options), KEYS, "train").classes)
    same = np.all(half == none, axis=1)  # the other tasks are as they were
    assert abs(np.mean(same) - 0.5) < 4 * 0.5 / len(KEYS) ** 0.5
    np.testing.assert_array_equal(half[~same], drawn[~same])
    tested = np.asarray(DRAW(domain, KEYS, "test").classes)
    np.testing.assert_array_equal(tested, DRAW(imaml.image_tasks(table(), **options), KEYS, "test").classes)
    limited = domain.limited("train", [0, 3, 6, 9, 2])
    assert set(np.unique(DRAW(limited, KEYS[:20], "train").classes).tolist()) == {0, 3, 6, 9}
    with pytest.raises(DataError, match=r"at least 4 classes .*got 3"):
        domain.limited("train", [0, 3, 6, 1, 4, 7])


def test_without_validation_its_classes_are_learned_from():
    kept, learned = (
        imaml.image_tasks(table(), ways=3, shots=2, queries=2, filters=4, validation=v) for v in (True, False)
    )
    np.testing.assert_array_equal(learned.splits["train"], [*range(12), *range(12, 18)])
    np.testing.assert_array_equal(learned.splits["test"], kept.splits["test"])
    assert set(np.unique(DRAW(learned, KEYS, "train").classes).tolist()) == set(range(18))
    with pytest.raises(DataError, match=r"got none, as validation=false.*--training.validate_every=0"):
        learned.draw(KEYS[0], "validation")
    # an experiment says so at its first step, before it has trained for hours
    inner = imaml.GradientDescent(0.1, 1)
    method = imaml.FOMAML(learned.problem(0.5), learned.query_loss, inner=inner)
    with pytest.raises(DataError, match="validate_every=0"):
        imaml.train(learned, method, imaml.Optimiser("adam", 1e-3), steps=2, tasks=1, validate_every=2)
    # a class whose images are too few for a task of training, but not for one of validation
    few = dataclasses.replace(table(), count=np.array([6] * 12 + [4] + [6] * 11))
    with pytest.warns(RuntimeWarning, match=r"train split: 1 of 18 classes are excluded.*class12"):
        one = imaml.image_tasks(few, ways=3, shots=2, queries=2, filters=4, train_queries=4, validation=False)
    assert 12 not in np.asarray(one.splits["train"])


def test_a_limited_domain_says_so_in_its_recipe():
    domain = imaml.characters(ways=3, filters=4).limited("train", [5, 9, 100, 7])
    assert domain.recipe.limits == (("train", (5, 7, 9, 100)),)
    again = domain.recipe.build()
    np.testing.assert_array_equal(again.splits["train"], domain.splits["train"])
    drawn = DRAW(again, KEYS[:50], "train")
    assert set(np.unique(drawn.classes).tolist()) == {5, 7, 9, 100}
    for classes, split in (([1, 2], "train"), ([1, 2, 25_000], "train"), ([1, 2, 3], "trial")):
        with pytest.raises(ConfigError, match="limited"):
            domain.limited(split, classes)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: imaml.image_tasks(table(images=3), ways=3, shots=2, queries=2),
            DataError,
            "expected at least 4 images .*got 3",
        ),
        (lambda: imaml.image_tasks(table(), ways=7), DataError, "expected at least 7 classes .*got 6"),
        (lambda: imaml.image_tasks(table(side=20), ways=3), DataError, "images: expected"),
        (lambda: imaml.image_tasks(table().with_splits(test=None), ways=3), DataError, "test split"),
        (lambda: imaml.characters(ways=1), ConfigError, "ways: expected .*at least 2, got 1"),
        (lambda: imaml.characters(ways=2001), ConfigError, "at most 2000"),
        (lambda: imaml.characters(shots=0), ConfigError, "shots: expected .*, got 0"),
        (lambda: imaml.characters(normalisation="both"), ConfigError, "normalisation"),
        (lambda: FewShotRecipe("photos"), ConfigError, "source"),
        (lambda: FewShotRecipe(split="mine"), ConfigError, "vinyals"),
        (lambda: FewShotRecipe(rotations="no"), ConfigError, "rotations"),  # type: ignore[arg-type]
        (lambda: FewShotRecipe(symmetries=1), ConfigError, "symmetries"),  # type: ignore[arg-type]
        (lambda: FewShotRecipe(distortion=-0.5), ConfigError, "distortion: expected .*got -0.5"),
        (lambda: FewShotRecipe(distortion=float("nan")), ConfigError, "distortion: expected .*got nan"),
        (lambda: FewShotRecipe(distortion="much"), ConfigError, "distortion"),  # type: ignore[arg-type]
        (lambda: FewShotRecipe(limits=(("train", 5),)), ConfigError, "limits: expected a tuple"),  # type: ignore[arg-type]
        (lambda: FewShotRecipe(limits=(("train",),)), ConfigError, "limits: .* a tuple of 2"),  # type: ignore[arg-type]
        (lambda: FewShotRecipe("images", within=1.5), ConfigError, "within: expected at most 1 .*got 1.5"),
        (
            lambda: FewShotRecipe("characters", within=0.5),
            ConfigError,
            "within: expected at most 0 for characters",
        ),
        (lambda: imaml.characters(validation=False), ConfigError, "validation: expected True for characters"),
        (
            lambda: FewShotRecipe("omniglot", detail=2),
            ConfigError,
            "detail: expected 1.*got 2.*aligned=False",
        ),
        (
            lambda: FewShotRecipe(aligned=True, detail=2),
            ConfigError,
            "detail: .*got 2 with source='characters'",
        ),
        (
            lambda: imaml.image_tasks(table(), ways=3, aligned=True, detail=2),
            DataError,
            r"images: expected \(56, 56, 1\) for images, got \(28, 28, 1\)",
        ),
        (lambda: imaml.image_tasks(table(), within=0.5), DataError, "at least 5 classes .*got 1"),
        (lambda: FewShotRecipe("mini-imagenet").build(), DataError, "--data"),
        (lambda: imaml.sinusoid(shots=0), ConfigError, "shots: expected .*, got 0"),
        (lambda: imaml.linear_gaussian(features=0), ConfigError, "features: expected .*, got 0"),
        (lambda: imaml.linear_gaussian(noise=-1.0), ConfigError, "noise"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_linear_gaussian_has_its_closed_form():
    domain = imaml.linear_gaussian(features=4, shots=6, queries=5)
    keys = jax.random.split(jax.random.key(2), 3)
    tasks = jax.vmap(lambda k: domain.sample(k, "train"))(keys)
    assert tasks.support.inputs.dtype == jnp.float64
    theta, strength = jax.random.normal(jax.random.key(9), (4,)), 0.7
    method = imaml.IMAML(
        domain.problem(strength),
        domain.query_loss,
        inner=imaml.GradientDescent(0.2, tolerance=1e-13),
        linear=imaml.CG(tolerance=1e-13),
    )
    gradient, metrics = jax.jit(lambda theta, tasks: method(theta, tasks))(theta, tasks)
    expected = jnp.mean(
        jax.vmap(lambda task: closed_forms.meta_gradient(theta, task, strength))(tasks), axis=0
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)  # float64, solved to 1e-13
    assert bool(jnp.all(metrics.used))

    def outer(theta):  # the same by automatic differentiation of the closed solution
        loss = lambda t: domain.query_loss(closed_forms.solution(theta, t.support, strength), theta, t.query)  # noqa: E731
        return jnp.mean(jax.vmap(loss)(tasks))

    np.testing.assert_allclose(jax.grad(outer)(theta), expected, rtol=1e-10)


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("name", ["sinusoid", "trajectory", "actor-critic", "game", "energy"])
def test_presets_without_data_share_their_tasks_between_devices(name):
    """Built, not run: a solver that cannot be shared is refused there."""
    from imaml.config.presets import preset
    from imaml.training.step import devices_mesh

    config = preset(name)
    mesh = devices_mesh(8)
    assert mesh is not None
    config.method.build(config.domain.build(), mesh)


def test_turned_tasks_are_the_random_ones_with_each_class_by_a_quarter_of_its_own():
    domain, turned = (
        FewShotRecipe("characters", 5, 1, queries=2, protocol=protocol).build()
        for protocol in ("random", "turned")
    )
    upright, other = (one.draw(jax.random.key(3), "test") for one in (domain, turned))
    np.testing.assert_array_equal(upright.classes, other.classes)
    np.testing.assert_array_equal(upright.examples, other.examples)
    assert not upright.turns.any()
    keys = jax.random.split(jax.random.key(4), 200)
    drawn = jax.jit(jax.vmap(lambda key: turned.draw(key, "test")))(keys)
    assert set(np.unique(drawn.turns)) == {0, 1, 2, 3}
    assert np.bincount(drawn.turns.ravel(), minlength=4).min() > 200  # of 250 expected
    # Of 200 draws about 100 agree if turns are independent of each other and of the classes.
    for other_bits in (drawn.turns[:, 1:], drawn.classes):
        for column in np.asarray(other_bits).T:
            assert 70 < np.sum(np.asarray(drawn.turns[:, 0]) % 2 == column % 2) < 130
    task, plain = jax.jit(lambda: (turned.gather(other), domain.gather(upright)))()
    assert np.unique(other.turns).size > 1
    for label, quarters in enumerate(other.turns):
        for part, rows in (("support", [label]), ("query", [2 * label, 2 * label + 1])):
            for row in rows:
                before, after = (getattr(each, part).images[row, ..., 0] for each in (plain, task))
                np.testing.assert_array_equal(after, np.rot90(before, int(quarters)))
    training = [one.draw(jax.random.key(3), "train") for one in (domain, turned)]
    jax.tree.map(np.testing.assert_array_equal, *training)


def test_people_were_asked_within_one_alphabet_by_two_drawers(ranks_mixed):
    """Groups come in turn, none with too few classes; one drawer has the support set, another the query."""
    names = [f"{group}/{i}" for group, size in (("a", 6), ("b", 3), ("c", 5)) for i in range(size)]
    count = np.full(14, 4)
    pixels = np.zeros((14 * 4, 28, 28, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.tile(np.arange(4), 14)  # which drawer it was
    groups = tuple(name[0] for name in names)
    splits = {"test": np.arange(14)}
    own = Images(pixels, np.arange(14) * 4, count, tuple(names), groups, splits)
    recipe = FewShotRecipe("omniglot", ways=5, queries=1, protocol="people")
    with pytest.raises(DataError, match="train split"):
        table_of(recipe, own)
    domain = table_of(FewShotRecipe("folder", ways=5, queries=1), own)
    domain = dataclasses.replace(domain, recipe=recipe)
    draw = jax.jit(lambda key, place: domain.draw_in_turn(key, "test", place))
    seen = []
    for place in range(6):
        drawn = draw(jax.random.key(place), place)
        classes, examples = np.asarray(drawn.classes), np.asarray(drawn.examples)
        found = {groups[i] for i in classes}
        assert (len(found), len(set(classes.tolist()))) == (1, 5)
        seen += found
        assert (examples == examples[:1]).all()
        assert examples[0, 0] != examples[0, 1]
        assert int(domain.number(drawn)) == "abc".index(seen[-1])
        task = domain.gather(drawn)
        assert len(np.unique(task.support.images[:, 0, 0, 0])) == 1
    assert seen == ["a", "c"] * 3
    with pytest.raises(ConfigError, match="only Omniglot's drawers are known"):
        FewShotRecipe("characters", protocol="people")
    # An evaluation lists the scores of each group, over its own draws.
    domain = dataclasses.replace(domain, recipe=dataclasses.replace(recipe, filters=2))
    method = imaml.config.IMAMLRecipe(inner=imaml.GradientDescent(0.1, 1)).build(domain)
    found = evaluate_theta(domain, method, domain.init(jax.random.key(0)), split="test", tasks=5)
    listed, accuracy = found.by_group(), found.values["accuracy"]
    assert {name: scores["accuracy"] for name, scores in listed.items()} == {
        "a": pytest.approx(accuracy[[0, 2, 4]].mean()),
        "c": pytest.approx(accuracy[[1, 3]].mean()),
    }
    assert found.to_json()["groups"] == json_values(listed)
    lines = [line.split()[0] for line in str(found).splitlines()]
    assert lines.count("a") == lines.count("c") == 1
    assert "nan" not in str(
        evaluate_theta(domain, method, domain.init(jax.random.key(0)), split="test", tasks=3)
    )
    # Random tasks of a table that has groups are not listed by them, though some come twice.
    few = dataclasses.replace(domain, recipe=dataclasses.replace(domain.recipe, ways=2, protocol="random"))
    few = dataclasses.replace(few, splits={"test": jnp.arange(2)})
    method = imaml.config.IMAMLRecipe(inner=imaml.GradientDescent(0.1, 1)).build(few)
    found = evaluate_theta(few, method, few.init(jax.random.key(0)), split="test", tasks=300)
    assert found.different < 300
    assert found.by_group() == {}
