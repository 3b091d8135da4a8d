"""What the README and its pages show runs, word for word, and what they link to is there."""

import re
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from helpers.processes import QUICK

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown(page):
    """Returns the example file that a page shows, and the text that it shows."""
    found = re.search(r"<!-- (examples/\S+) -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found is not None
    return ROOT / found[1], found[2]


def test_it_fits_on_one_page():
    assert len(README.splitlines()) <= 180
    assert len(re.findall(r"^\| .* \| `.*` \|", README, re.MULTILINE)) in range(6, 11)  # results


def test_the_example_is_the_file_trains_and_adapts(tmp_path):
    file, text = shown("README.md")
    assert text == file.read_text()
    assert len([line for line in text.splitlines() if line]) <= 15
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=QUICK
    )
    assert done.returncode == 0, done.stderr
    mean, low, high = (
        [float(number) for number in re.findall(r"\d+\.\d*", part)]
        for part in re.findall(r"(?:mean|low|high)=array\(\[(.*?)\]", done.stdout)
    )
    assert 300 < mean[0] < mean[1] < 350  # the person gains about 6.5 a day from 280
    assert all(a < b < c for a, b, c in zip(low, mean, high, strict=True))
    assert "12 tasks (test split" in done.stdout


def test_the_first_gradient_is_the_file_and_runs():
    file, text = shown("docs/first_gradient.md")
    assert text == file.read_text()
    assert len(text.splitlines()) <= 28
    assert "jax.jit(method)" in text
    assert "method.check(metrics)" in text  # under jit nothing else says that a task was excluded
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "16 x CONVERGED" in done.stdout
    assert "nan" not in done.stdout


@pytest.mark.slow
def test_an_algorithm_of_one_s_own_is_short_and_finds_the_family_s_middle():
    file = ROOT / "examples/own_algorithm.py"
    assert len(file.read_text().splitlines()) < 60
    command = [sys.executable, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=QUICK)
    assert done.returncode == 0, done.stderr
    assert "64 x CONVERGED" in done.stdout
    first, second = map(float, re.search(r"\[ ?([\d.-]+) +([\d.-]+)\]", done.stdout).groups())
    assert abs(first - 2) < 0.1
    assert abs(second + 1) < 0.1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.relative_to(ROOT / 'docs')})" in index, page


def test_commands_exist():
    from imaml.cli.main import COMMANDS
    from imaml.cli.own_tasks import OWN
    from imaml.config.presets import PRESETS

    text = "\n".join(page.read_text() for page in PAGES)
    for command, word in re.findall(r"^imaml (\w+) (\S+)", text, re.MULTILINE):
        assert command in COMMANDS
        if command == "train" and not word.startswith("-"):
            assert word in {*PRESETS, *OWN}


def test_the_table_is_what_the_result_files_say():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "render", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


EXAMPLES = {
    **dict.fromkeys(("actor_critic", "q_learning"), pytest.mark.slow),
    **dict.fromkeys(("trajectory", "energy", "game", "inpainting", "generation", "carts"), pytest.mark.long),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in EXAMPLES.items()])
def test_examples_of_inner_algorithms_run(name):
    file = ROOT / f"examples/{name}.py"
    assert len(file.read_text().splitlines()) < 120
    command = [sys.executable, str(file), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=QUICK)
    assert done.returncode == 0, done.stderr
    assert re.search(r"before adaptation: .*\d", done.stdout)
    assert re.search(r"^after: .*\d", done.stdout, re.MULTILINE)
    assert "nan" not in done.stdout


@pytest.mark.long
def test_the_example_of_deployment_gives_the_same_answers_in_each_process():
    command = [sys.executable, str(ROOT / "examples/deployment.py"), "linear"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=QUICK)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"answers \[(.*)\]", done.stdout)
    assert len(answers) == 5
    numbers = [[float(one) for one in line.split(", ")] for line in answers]
    assert max(abs(a - b) for line in numbers for a, b in zip(line, numbers[0], strict=True)) < 0.01


OWN = sorted((ROOT / "examples/own").glob("*.py"))


LONGEST = ("counts", "image_folder", "ragged_list", "flax_module")


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=pytest.mark.long if file.stem in LONGEST else pytest.mark.slow, id=file.stem)
        for file in OWN
    ],
)
def test_programs_on_own_tasks_learn_save_load_in_another_process_and_adapt(file, tmp_path):
    assert len(OWN) == 5
    assert len(file.read_text().splitlines()) <= 25
    command = [sys.executable, str(file), str(tmp_path / "learned.imaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=QUICK)
    assert done.returncode == 0, done.stderr
    after = float(re.search(r"(?:after adaptation) +(\S+)", done.stdout)[1])
    against = [float(score) for score in re.findall(r"minus this, paired +(\S+)", done.stdout)]
    sign = 1 if "accuracy after" in done.stdout else -1
    assert len(against) >= 2  # baselines
    assert sum(sign * difference > 0 for difference in against) > len(against) / 2, done.stdout
    assert after > 0
    answer = done.stdout.split("paired")[-1]
    assert "array" in answer or "[[" in answer  # intervals or probabilities of the new task
    assert "nan" not in done.stdout
