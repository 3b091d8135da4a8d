"""The tables of results in README.md and docs/comparison.md, made from the committed result files.

    python -m benchmarks.table            # rewrites the blocks between the marks

`--check` writes nothing and fails where a table is not what the files say.
"""

import json
import sys
from pathlib import Path

from benchmarks import pages

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- {}: python -m benchmarks.table -->", "<!-- end of {} -->"
PAGES = {  # page: block: the result file it needs, and what writes it
    "docs/certificates.md": {
        "certified": ("certificates.json", pages.certified),
        "adversarial": ("adversarial.json", pages.adversarial),
        "requested": ("accuracy.json", pages.requested),
        "costs": ("certificate_cost.json", pages.costs),
        "correction": ("theory/theory.json", pages.corrected),
    },
    "README.md": {"silent": ("certificates.json", pages.never)},
    "docs/theory.md": {"theory": ("theory/theory.json", pages.exponents)},
    "docs/indefinite.md": {"indefinite": ("indefinite.json", pages.indefinite)},
    "docs/delta.md": {"delta": ("delta.json", pages.delta)},
    "docs/stochastic_inner_loops.md": {
        "counts": ("stochastic.json", pages.stochastic),
        "learning": ("stochastic_learning.json", pages.stochastic_learning),
    },
    "docs/performance.md": {
        "peers": ("peers.json", pages.peers),
        "roofline": ("roofline.json", pages.roofline),
        "growth": ("growth.json", pages.growth),
        "dry_run": ("dry_run.json", pages.dry_run),
        "startup": ("startup.json", pages.startup),
    },
    "docs/any_inner.md": {
        "any_inner": ("any_inner.json", pages.any_inner),
        "trajectory": ("trajectory.json", pages.trajectory),
    },
    "docs/tables.md": {
        "days": ("last_days.json", pages.last_days),
        "mixed": ("mixed.json", pages.mixed),
    },
    "docs/bayes.md": {
        "posteriors": ("posteriors.json", pages.posteriors),
        "five_ways": ("five_ways.json", pages.five_ways),
        "waves": ("sinusoid_intervals.json", pages.waves),
    },
}
COMPARISONS = {  # what each result file of `imaml compare` is of
    "omniglot-5w1s": "Omniglot, 5-way 1-shot",
    "omniglot-20w1s": "Omniglot, 20-way 1-shot",
    "characters-5w1s": "drawn characters, 5-way 1-shot",
}


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
    waves = RESULTS / "sinusoid.json"
    if waves.exists():
        r = json.loads(waves.read_text())
        text = (
            f"{r['loss']:.2f} ± {r['loss_ci95']:.2f}; before adaptation {r['before']:.2f}, nearest point "
            f"{r['baselines']['nearest_point']:.2f} ({r['tasks']} tasks)"
        )
        command = "imaml train sinusoid --out RUN; imaml evaluate RUN --json"
        found.append(("sinusoids from 10 points, mean squared error", text, command, waves))
    certificates = RESULTS / "certificates.json"
    if certificates.exists():
        r = json.loads(certificates.read_text())
        every = next(row for row in r["rows"] if row["kind"] == "all")
        text = (
            f"{100 * every['certified']:.0f} % of {every['problems']} random problems proved or certified; "
            f"of these the bound held in {100 * every['bound_holds']:.1f} %, at "
            f"{every['median_bound_over_true']:.2f} times the true error in the median"
        )
        found.append(("error bounds beside a dense reference", text, r["command"], certificates))
    accuracy = RESULTS / "accuracy.json"
    if accuracy.exists():
        r = json.loads(accuracy.read_text())
        met = [(row["certified"] * row["problems"], row.get("of_them_below") or 0) for row in r["rows"]]
        share = sum(n * below for n, below in met) / sum(n for n, _ in met)
        certified = sum(n for n, _ in met) / sum(row["problems"] for row in r["rows"])
        text = f"{100 * certified:.0f} % of the cases certified; of these reached in {100 * share:.1f} %"
        what = "an accuracy asked for (1e-2, 1e-4, 1e-6 of the meta-gradient)"
        found.append((what, text, r["command"], accuracy))
    memory = RESULTS / "memory.json"
    if memory.exists():
        r = json.loads(memory.read_text())
        name = next(n for n in r["temporary_bytes"] if n.startswith("Conv4"))
        flat, grown = (r["temporary_bytes"][name][kind] for kind in ("IMAML", "unrolled"))
        text = (
            f"{flat[-1] / flat[0]:.2f} times its memory with 4 steps, {flat[-1] / 2**20:.0f} MiB; MAML, "
            f"unrolled, {grown[-1] / grown[0]:.0f} times its own with 4, {grown[-1] / 2**20:,.0f} MiB"
        )
        found.append((f"meta-step with 1,024 inner steps ({name})", text, r["command"], memory))
    peers = RESULTS / "peers.json"
    if peers.exists():
        r = json.loads(peers.read_text())
        cores = max(row["threads"] for row in r["rows"])
        rows = {(row["work"], row["peer"]): row for row in r["rows"] if row["threads"] == cores}
        said = []
        for work, what in (("c-4", "Conv4, 4 tasks 5-way 1-shot"), ("b", "sinusoid network, 25 tasks")):
            times = {
                "plain PyTorch": rows[work, "PyTorch, eager loop"]["times_imaml"],
                "TorchOpt": rows[work, "TorchOpt"]["times_imaml"],
                "torch.compile": min(
                    row["times_imaml"]
                    for key, row in rows.items()
                    if key[0] == work and key[1].startswith("torch.compile") and row["times_imaml"]
                ),
            }
            said.append(f"{what}: " + ", ".join(f"{each:.1f} times {name}" for name, each in times.items()))
        found.append(("one meta-step, how many times as fast as", "; ".join(said), r["command"], peers))
    adaptation = RESULTS / "adaptation.json"
    if adaptation.exists():
        r = json.loads(adaptation.read_text())
        row = next(row for row in r["rows"] if "omniglot" in row["artefact"])
        spent = row["milliseconds"]["read_and_adapt"]
        text = (
            f"{spent['median']:.0f} ms after the first call (median of {r['tasks']}; {spent['min']:.0f} to "
            f"{spent['max']:.0f}), {spent['first_call'] / 1e3:.1f} s at the first"
        )
        what = "adapting the Omniglot artefact to a new 5-way 1-shot task from PNG files"
        found.append((what, text, r["command"], adaptation))
    new = RESULTS / "new_tasks.json"
    if new.exists():
        r = json.loads(new.read_text())
        scores = {(row["theta"], row["tasks_of"]): row for row in r["rows"]}
        said = {
            "before": "the first half learned, 480 steps:",
            "went_on": "both halves for 480 steps more:",
            "anew_on_all": "both from the start, 480 steps in all:",
            "from_scratch": "nothing learned across tasks:",
        }
        said = {theta: words.replace("480", str(r["steps"])) for theta, words in said.items()}
        shown = [
            f"{words} {percent(row['accuracy'], row['accuracy_ci95'])}"
            for theta, words in said.items()
            for row in [scores[theta, "new"]]
        ]
        what = "half of the alphabets learned, then the others arrive (`--from`): accuracy on the new ones"
        found.append((what, "; ".join(shown), r["command"], new))
    return [row for row in found if row is not None]


def table():
    """The Markdown table."""
    lines = ["| what | figure | command | file |", "|---|---|---|---|"]
    for what, text, command, file in rows():
        place = file.relative_to(ROOT).as_posix()
        lines.append(f"| {what} | {text} | `{command}` | [{file.name}]({place}) |")
    return "\n".join(lines)


def comparisons():
    """What is compared -> (what `imaml compare` wrote, its file), of every result that is there."""
    files = {title: RESULTS / f"compare-{name}.json" for name, title in COMPARISONS.items()}
    return {title: (json.loads(file.read_text()), file) for title, file in files.items() if file.exists()}


def _mean(entry, signed=False):
    if not entry:
        return "–"
    mean = round(100 * entry["mean"], 1) + 0.0  # + 0.0: no "-0.0"
    return f"{mean:{'+' if signed else ''}.1f} ± {100 * entry['ci95']:.1f}"


def compared():
    """The README's table of methods: accuracies in per cent at equal time, and what is left minus iMAML's."""
    found = comparisons()
    methods = dict.fromkeys(row["method"] for summary, _ in found.values() for row in summary["rows"])
    head = ["method"]
    for title in found:
        head += [title, "inductive", "difference from imaml"]
    lines = [head, ["---"] * len(head)]
    for method in methods:
        line = [method]
        for summary, _ in found.values():
            row = next((row for row in summary["rows"] if row["method"] == method), None)
            if row is None:
                line += [""] * 3
                continue
            scores, less = row["equal_time"], row["difference_at_equal_time"]
            line += [_mean(scores.get("accuracy")), _mean(scores.get("accuracy_inductive"))]
            line += ["" if method == summary["reference"] else _mean(less.get("accuracy"), signed=True)]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def whole_comparisons():
    """The whole tables, one after another, each with its command, as docs/comparison.md has them."""
    from imaml.report.comparison_page import markdown

    abouts = {row["method"]: row["about"] for summary, _ in comparisons().values() for row in summary["rows"]}
    parts = ["\n".join(f"- `{name}`: {about}" for name, about in abouts.items()) + "\n"]
    for title, (summary, file) in comparisons().items():
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        parts.append(f"`{summary['command']}` ([{file.name}](../{file.relative_to(ROOT).as_posix()}))\n")
        parts.append(markdown(summary))
    return "\n".join(parts).rstrip()


def filled(text, name, content):
    """A text with the block of that name replaced."""
    start, end = START.format(name), END.format(name)
    head, rest = text.split(start)
    return f"{head}{start}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def main():
    """Writes or checks the tables."""
    blocks = {"README.md": {"results": table()}}
    for page, tables in PAGES.items():
        made = {block: write() for block, (file, write) in tables.items() if (RESULTS / file).exists()}
        if made:
            blocks[page] = blocks.get(page, {}) | made
    if comparisons():
        blocks["README.md"]["comparison"] = compared()
        blocks["docs/comparison.md"] = {"comparisons": whole_comparisons()}
    for name, contents in blocks.items():
        text = made = (ROOT / name).read_text()
        for block, content in contents.items():
            made = filled(made, block, content)
        if "--check" in sys.argv and made != text:
            sys.exit(f"{name}: a table is not what the result files say")
        (ROOT / name).write_text(made)


if __name__ == "__main__":
    main()
