"""The README's table of results, made from the committed result files.

    python -m benchmarks.table            # rewrites the block between the marks in README.md

`--check` writes nothing and fails where the README's table is not what the files say.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- results: python -m benchmarks.table -->", "<!-- end of results -->"


def percent(mean, width):
    """An accuracy with its 95 % interval."""
    return f"{100 * mean:.1f} ± {100 * width:.1f} %"


def accuracy_row(name, what, command):
    """A row of one `imaml evaluate --json` result, or None where the file is not there."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return None
    r = json.loads(file.read_text())
    nearest = r["baselines"]["pixel_nearest_neighbour"]
    text = (
        f"{percent(r['accuracy'], r['accuracy_ci95'])} transductive, "
        f"{percent(r['accuracy_inductive'], r['accuracy_inductive_ci95'])} inductive; before adaptation "
        f"{100 * r['before']:.1f} %, pixel nearest neighbour {100 * nearest:.1f} % ({r['tasks']} tasks)"
    )
    return what, text, command, file


def rows():
    """(what, figure, command, file) of every result that is there."""
    found = [
        accuracy_row(
            "characters-5w1s",
            "drawn characters never seen, 5-way 1-shot",
            "imaml evaluate artefacts/characters-5w1s.safetensors --json",
        ),
        accuracy_row(
            "characters-on-omniglot",
            "the same artefact on real Omniglot, which it never saw",
            "imaml evaluate artefacts/characters-5w1s.safetensors --data PATH --json",
        ),
        accuracy_row(
            "omniglot-5w1s",
            "Omniglot 5-way 1-shot, Vinyals split",
            "imaml evaluate artefacts/omniglot-5w1s.safetensors --data PATH --json",
        ),
    ]
    memory = RESULTS / "memory.json"
    if memory.exists():
        r = json.loads(memory.read_text())
        name = next(n for n in r["temporary_bytes"] if n.startswith("Conv4"))
        flat, grown = (r["temporary_bytes"][name][kind] for kind in ("IMAML", "unrolled"))
        text = (
            f"{flat[-1] / flat[0]:.2f} times the memory of 4 steps ({flat[-1] / 2**20:.0f} MiB); unrolled "
            f"{grown[-1] / grown[0]:.0f} times ({grown[-1] / 2**20:.0f} MiB)"
        )
        found.append((f"meta-step with 1,024 inner steps ({name})", text, r["command"], memory))
    speed = RESULTS / "speed.json"
    if speed.exists():
        r = json.loads(speed.read_text())
        text = "; ".join(f"{row['work']}: {row['ratio_median']:.1f} times" for row in r["rows"])
        found.append(("one meta-step beside a plain PyTorch loop", text, r["command"], speed))
    new = RESULTS / "new_tasks.json"
    if new.exists():
        r = json.loads(new.read_text())
        scores = {(row["theta"], row["tasks_of"]): row for row in r["rows"]}
        shown = [
            f"{theta.replace('_', ' ')} {percent(row['accuracy'], row['accuracy_ci95'])}"
            for theta in ("before", "went_on", "anew_on_all", "from_scratch")
            for row in [scores[theta, "new"]]
        ]
        found.append(
            ("new alphabets arrive (`--from`), accuracy on them", "; ".join(shown), r["command"], new)
        )
    return [row for row in found if row is not None]


def table():
    """The Markdown table."""
    lines = ["| what | figure | command | file |", "|---|---|---|---|"]
    for what, text, command, file in rows():
        place = file.relative_to(ROOT).as_posix()
        lines.append(f"| {what} | {text} | `{command}` | [{file.name}]({place}) |")
    return "\n".join(lines)


def main():
    """Writes or checks the README's table."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    made = f"{head}{START}\n\n{table()}\n\n{END}{tail}"
    if "--check" in sys.argv:
        sys.exit(0 if made == text else "README.md: the table is not what the result files say")
    readme.write_text(made)


if __name__ == "__main__":
    main()
