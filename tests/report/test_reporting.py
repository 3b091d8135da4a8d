"""The report: one page that needs nothing else, says the figures, and survives any run."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from imaml.core.errors import DataError
from imaml.domains.scenes import Scene
from imaml.report.charts import Line, figure
from imaml.report.run_page import Example, write_report
from imaml.training.journal import Journal

VOID = {"meta", "img", "path", "circle", "rect", "polygon", "br", "input", "link"}


class Page(HTMLParser):
    """Checks that every element is closed, and collects the text, the tags and the attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def fake(folder, steps=300, end=True, accuracy=True):
    config = {
        "kind": "Config",
        "domain": {"kind": "FewShotRecipe", "source": "characters", "ways": 3, "shots": 1},
    }
    config["method"] = {"name": "<script>alert(1)</script>", "inner": {"steps": [1, 2, {"deep": None}]}}
    if not accuracy:
        config["domain"] = {"kind": "SinusoidRecipe"}
    (folder / "config.json").write_text(json.dumps(config))
    headline = "accuracy" if accuracy else "loss"
    with Journal(folder, progress=False) as journal:
        journal.write("start", version="9.8.7", steps=steps, tasks=4, parameters=112261, headline=headline)
        for step in range(10, steps + 1, 10):
            fields = {"loss": 2.0 / step if step != 100 else float("nan"), "failed": step == 50}
            fields |= {"accuracy": 1 - 1 / step} if accuracy else {}
            fields |= {"inner_residual": 1 / step, "linear_residual": 0.1, "negative_curvature": 0.0}
            fields |= {f"inner_steps{of}": 16.0 for of in ("", "_median", "_p90", "_max")}
            fields |= {"linear_steps": 4 + step % 3, "linear_steps_median": 4, "linear_steps_p90": 6}
            fields |= {"linear_steps_max": 7 + step // 100}
            journal.write(
                "step", step=step, seconds=0.5 * step, gradient_norm=1.0, learning_rate=1e-3, **fields
            )
            if step % 100 == 0:
                scores = {headline: 0.8, f"{headline}_inductive": 0.7, "loss": 0.4}
                journal.write("validation", step=step, seconds=step * 0.5, scores=scores, ci95={}, tasks=9)
        journal.write("warning", message="<b>bold</b> & <script>alert(2)</script>")
        if end:
            journal.write("end", step=steps, reason="minutes", seconds=0.5 * steps)
            scores = {headline: 0.9412, f"{headline}_inductive": 0.9234} if accuracy else {"loss": 0.0213}
            before, ci95 = {headline: 0.3345}, dict.fromkeys(scores, 0.0041)
            others = {"pixel_nearest_neighbour": 0.4567}
            journal.write(
                "evaluation",
                split="test",
                scores=scores,
                ci95=ci95,
                before=before,
                baselines=others,
                tasks=1000,
                seed=0,
                data="characters",
            )
    return folder


def image_example(channels=()):
    draw = np.random.default_rng(0)
    images = draw.uniform(size=(6, 8, 8, *channels))
    labels = np.array([0, 1, 2, 0, 1, 2])
    return Example(
        images[:3], labels[:3], images, labels, np.array([0, 1, 2, 0, 1, 0]), np.full((6, 3), 1 / 3)
    )


def test_the_page_needs_nothing_else(tmp_path):
    path = write_report(fake(tmp_path), [image_example(), image_example((1,)), image_example((3,))])
    page = Page(path.read_text())
    assert path == tmp_path / "report.html"
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for tag, given in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert given.get(name, "data:").startswith("data:")
        assert tag != "img" or given["alt"]
        assert given.get("role") != "img" or given["aria-label"]
    policy = {"http-equiv": "Content-Security-Policy"}
    policy["content"] = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", policy) in page.tags
    assert "url(" not in path.read_text()
    assert "@import" not in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "events.jsonl", "report.html"]


def test_text_is_escaped(tmp_path):
    page = Page(write_report(fake(tmp_path)).read_text())
    assert "<b>bold</b> & <script>alert(2)</script>" in page.text
    assert "<script>alert(1)</script>" in page.text


def test_text_of_examples_is_escaped(tmp_path):
    hostile, x = '"><script>alert(3)</script>', np.linspace(0, 1, 5)
    scenes = [
        Scene(hostile, hostile, lines={hostile: (x, x), "after": (x, x)}, x_name=hostile),
        Scene(hostile, hostile, images={hostile: np.zeros((2, 2))}),
    ]
    page = Page(write_report(fake(tmp_path), scenes).read_text())
    assert not {"script"} & {tag for tag, _ in page.tags}
    assert page.text.count(hostile) == 7
    assert any(hostile in (given.get("aria-label") or "") for _, given in page.tags)
    assert any(hostile in (given.get("alt") or "") for _, given in page.tags)


def test_the_figures_are_said(tmp_path):
    page = Page(write_report(fake(tmp_path), [image_example()]).read_text())
    for words in (
        "Characters, 3-way 1-shot",
        "94.12 ± 0.41 %",
        "transductive",
        "92.34 ± 0.41 %",
        "inductive",
        "33.45 %",
        "Pixel nearest neighbour",
        "45.67 %",
        "the time budget is used up",
        "9.8.7",
        "Every task took 16 inner steps",
        "5 of 6 correct",
        "✗ A33 %",
        "Linear residual",
        "Negative curvature",
    ):
        assert words in page.text


def test_a_regression_run_draws_curves(tmp_path):
    x = np.linspace(-5, 5, 40)[:, None]
    lines = {"true": (x, np.sin(x)), "before": (x, 0 * x), "after": (x, 0.9 * np.sin(x))}
    scene = Scene("sinusoid", lines={**lines, "support": (x[::8], np.sin(x[::8]))}, x_name="input")
    page = Page(write_report(fake(tmp_path, accuracy=False), [scene]).read_text())
    assert "Sinusoid" in page.text
    assert "0.0213 ± 0.0041" in page.text
    assert "before" in page.text
    assert "Lower is better" in page.text


@pytest.mark.parametrize("steps", [0, 10, 20, 100])
def test_an_unfinished_run_has_a_page(tmp_path, steps):
    page = Page(write_report(fake(tmp_path, steps=steps, end=False)).read_text())
    assert "no end was recorded" in page.text
    assert ("Result so far" in page.text) == (steps == 100)


def test_a_folder_without_events_has_a_page(tmp_path):
    assert "no events yet" in Page(write_report(tmp_path).read_text()).text
    (tmp_path / "events.jsonl").write_text("")
    (tmp_path / "config.json").write_text("[1, null]")
    assert "no events yet" in Page(write_report(tmp_path).read_text()).text


def test_a_half_written_line_is_among_the_warnings(tmp_path):
    with (fake(tmp_path) / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert "half written" in Page(write_report(tmp_path).read_text()).text


def test_steps_repeated_after_a_resume_replace_the_first_ones(tmp_path):
    with Journal(tmp_path, progress=False) as journal:
        for step, loss in ((10, 1.0), (20, 7.25), (30, 8.25)):
            journal.write("step", step=step, seconds=float(step), loss=loss)
        journal.write("resume", step=10)
        journal.write("step", step=20, seconds=20.0, loss=0.75)
    text = Page(write_report(tmp_path).read_text()).text
    assert "0.75" in text
    assert "7.25" not in text
    assert "8.25" not in text
    assert "Resumedonce" in text


def test_nothing_finite_is_drawn_as_nothing(tmp_path):
    with Journal(tmp_path, progress=False) as journal:
        for step in (10, 20):
            journal.write("step", step=step, seconds=1.0, loss=float("nan"), inner_residual=float("inf"))
    assert not any(tag == "svg" for tag, _ in Page(write_report(tmp_path).read_text()).tags)


def test_a_long_run_stays_small(tmp_path):
    path = write_report(fake(tmp_path, steps=50_000))
    assert path.stat().st_size < 800_000


@pytest.mark.parametrize(
    "change",
    [{"support_labels": [0]}, {"predicted": [0]}, {"probabilities": [[1.0]]}, {"query": np.ones((6, 2))}],
)
def test_an_example_whose_parts_do_not_fit_is_refused(change):
    fields = {"support": np.zeros((3, 8, 8)), "support_labels": [0, 1, 2], "query": np.zeros((6, 8, 8))}
    fields |= {"query_labels": [0] * 6, "predicted": [0] * 6}
    with pytest.raises(DataError, match="Example"):
        Example(**(fields | change))


def test_what_cannot_be_read_is_said_plainly(tmp_path):
    with pytest.raises(DataError, match="expected a run directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: expected JSON, got an error"):
        write_report(tmp_path)


def scored(folder, splits=None, **facts):
    """A run of 50 steps with a result on test tasks; what it says of them is in `facts`."""
    known = {} if splits is None else {"held_out": splits}
    result = {"split": "test", "scores": {"loss": 0.5}, "ci95": {"loss": 0.1}, "before": {"loss": 0.9}}
    result |= {"baselines": {"true": 0.4}, "tasks": 40, "seed": 0, **facts}
    with Journal(folder, progress=False) as journal:
        journal.write("start", steps=50, tasks=4, headline="loss", **known)
        journal.write("step", step=50, seconds=1.0, loss=1.0)
        journal.write("validation", step=50, seconds=1.0, scores={"loss": 0.6}, ci95={}, tasks=9, failed=0)
        journal.write("end", step=50, reason="steps", seconds=1.0)
        journal.write("evaluation", **result)
    return folder


def scene():
    x = np.linspace(0, 1, 5)
    return Scene("a task", lines={"after": (x, x)}, x_name="input")


def test_the_page_claims_that_tasks_are_unseen_only_where_they_are(tmp_path):
    def page(splits, **facts):
        return Page(write_report(scored(tmp_path, splits, **facts), [scene()]).read_text()).text

    unseen = page(["train", "validation", "test"], held_out=True, oracles=["true"])
    assert "Trueknows what no method can" in unseen
    assert "on tasks that training never sees" in unseen
    assert "not used in training" in unseen
    assert "40 tasks of the test split" in unseen
    seen = page(["train"], held_out=False, different=4)
    assert "on tasks of training, as none was held out for validation" in seen
    assert "None was held out for it: they were used in training" in seen
    assert "None was held out for that split: these are training tasks" in seen
    assert "40 draws from 4 tasks of the test split" in seen
    unknown = page(None)  # of a run of an earlier version
    for text in (seen, unknown):
        assert "Truea baseline" in text
        assert "never sees" not in text
        assert "not used in training" not in text
        assert "learns nothing" not in text


def test_failed_test_tasks_are_in_the_report(tmp_path):
    page = Page(write_report(scored(tmp_path, failed=38, unscored={"before": 3, "true": 1})).read_text())
    assert "38 of 40 tasks failed numerically: excluded from every other score" in page.text
    assert "Before adaptation: 3 of 40 tasks have no finite score. True: 1 of 40 tasks" in page.text


def test_a_result_from_before_a_run_was_continued_is_not_shown(tmp_path):
    scored(tmp_path)
    config = {"kind": "Config", "training": {"kind": "Training", "steps": 9000}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "0.5 ± 0.1" in Page(write_report(tmp_path).read_text()).text
    with Journal(tmp_path, progress=False, append=True) as journal:
        journal.write("resume", step=50)
        journal.write("end", step=6376, reason="interrupted", seconds=2.0)
    page = Page(write_report(tmp_path).read_text())
    assert "0.5 ± 0.1" not in page.text
    assert "Result so far" in page.text
    assert "6,376 of 9,000" in page.text


def test_a_band_of_negative_scores_is_where_the_scores_are():
    x, y, half = np.arange(3.0), np.array([-5.0, -4.0, -3.0]), np.array([0.5, np.nan, 0.5])
    drawn = figure("return", "", [Line("validation", x, y, "b", half)], "step")
    band = re.search(r'd="(M[^"]*Z)"', drawn)[1]
    heights = [float(height) for height in re.findall(r" ([\d.]+)", band)]
    line = [float(height) for height in re.findall(r'cy="([\d.]+)" r="4"', drawn)]
    low, high = heights[:3], heights[:2:-1]
    assert all(a >= b >= c for a, b, c in zip(low, line, high, strict=True))
    assert low[0] > line[0] > high[0]
    assert low[1] == line[1] == high[1]  # no interval is known


def test_bars_of_negative_scores_have_no_length(tmp_path):
    page = Page(write_report(scored(tmp_path, scores={"loss": -2.0}, before={}, baselines={})).read_text())
    widths = [given["style"] for tag, given in page.tags if given.get("class") == "fill"]
    assert widths == ["width:0.00%"]


def test_a_validation_of_few_tasks_is_called_so(tmp_path):
    with Journal(tmp_path, progress=False) as journal:
        journal.write("start", steps=50, tasks=4, headline="loss", held_out=["train"])
        scores = {"scores": {"loss": 0.6}, "ci95": {}, "tasks": 200, "different": 3, "failed": 7}
        journal.write("validation", step=50, seconds=1.0, **scores)
    text = Page(write_report(tmp_path).read_text()).text
    assert "200 draws from 3 tasks of the validation split" in text
    assert "None was held out for that split" in text
    assert "7 of 200 tasks failed numerically" in text
