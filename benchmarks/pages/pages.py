"""The tables of the pages in docs/, from the results; `python -m benchmarks.table` puts them there."""

import json
import math
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def certified():
    """The table of docs/certificates.md: bounds and estimates beside true errors, by kind of problem."""
    r = json.loads((RESULTS / "certificates.json").read_text())
    lines = [
        "| problems | indefinite, seen by CG | proved, certified | of those with an error below 1 % "
        "| bound held | bound / error, median "
        "| estimate flagged | estimate at least the error | estimate / error, median |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in r["rows"]:
        proved = row["codes"]["PROVED"] / row["problems"]
        cells = [
            f"{row['kind']} ({row['problems']})",
            f"{row['indefinite']}, {row['negative_curvature_seen']}",
            f"{100 * proved:.0f} %, {100 * (row['certified'] - proved):.0f} %",
            f"{100 * row['of_them_certified']:.0f} %",
            f"{100 * row['bound_holds']:.1f} %",
            f"{row['median_bound_over_true']:.2f}",
            f"{100 * row['estimate_flagged']:.0f} %",
            f"{100 * row['estimate_at_least_true']:.0f} %",
            f"{row['median_estimate_over_true']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + silent(r) + "\n\n" + _source(r, "certificates.json")


def silent(r):
    """A sentence on the errors above 10 % that no user is told of, from certificates.json."""
    row = r["new"][-1]
    some = row["of_them_estimated_below_10_percent_and_not_flagged"]
    none = row["of_them_neither_certified_nor_flagged"]
    return (
        f"Of {row['problems']:,} new random problems, a quarter of each kind, {row['off_by_10_percent']:,} "
        f"gradients were off by more than 10 %. The estimate was below 10 % and not flagged as unreliable in "
        f"{some} of them ({100 * some / row['problems']:.2f} % of all). With a certificate asked for, {none} "
        f"of them had neither a bound nor a flag ({100 * none / row['problems']:.2f} %)."
    )


def never():
    """The README's sentence on how far "never silently wrong" is true, from certificates.json."""
    r = json.loads((RESULTS / "certificates.json").read_text())
    row = r["new"][-1]
    some = row["of_them_estimated_below_10_percent_and_not_flagged"]
    none = row["of_them_neither_certified_nor_flagged"]
    share = lambda count: f"{count} ({100 * count / row['problems']:.2f} %)"  # noqa: E731
    return (
        f'How far "never" holds was measured on {row["problems"]:,} random problems (`{r["command"]}`). '
        f"In {share(some)} of them the gradient was off by more than 10 %, the estimate was below 10 %, "
        f"and no status called it unreliable. With a bound asked for, {share(none)} of these remained, where "
        "the status said that there is no bound."
    )


def adversarial():
    """The table of docs/certificates.md: what the search for broken bounds found."""
    r = json.loads((RESULTS / "adversarial.json").read_text())
    kinds = dict.fromkeys(row["kind"] for row in r["rows"])
    lines = [
        "| problems | evaluations | proved: bounds, broken | certified: bounds, broken "
        "| largest error / bound |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        rows = [row for row in r["rows"] if row["kind"] == kind]
        total = lambda part, grade, rows=rows: sum(row[part][grade] for row in rows)  # noqa: E731
        cells = [kind, f"{sum(row['evaluations'] for row in rows):,}"]
        cells += [
            f"{total('certified', grade):,}, {total('violations', grade)}"
            for grade in ("proved", "certified")
        ]
        worst = [row["worst_log10"] for row in rows if row["worst_log10"] is not None]
        lines.append("| " + " | ".join([*cells, f"{10 ** max(worst):.6f}"]) + " |")
    source = f"`{r['command']}` ([adversarial.json](../benchmarks/results/adversarial.json))"
    return "\n".join(lines) + f"\n\n{source}"


def costs():
    """The table of docs/certificates.md: what estimates and certificates add to a meta-step."""
    r = json.loads((RESULTS / "certificate_cost.json").read_text())
    lines = [
        "| meta-step of 8 tasks | with | takes more, median (rounds) | products a task "
        "| what the tasks say |",
        "|---|---|---|---|---|",
    ]
    for row in r["rows"]:
        if row["what"] != row["more_than"]:
            codes = ", ".join(f"{count} {code}" for code, count in row.get("tasks", {}).items())
            low, *_, high = (100 * more for more in row["more_all"])
            more = f"{round(100 * row['more_median'])} % ({low:.0f} to {high:.0f})"
            products = f"{row['products_median']:.0f}" if "products_median" in row else ""
            lines.append(f"| {row['work']} | {row['what']} | {more} | {products} | {codes} |")
    source = f"`{r['command']}` ([certificate_cost.json](../benchmarks/results/certificate_cost.json))"
    return "\n".join(lines) + f"\n\n{source}"


def requested():
    """The table of docs/certificates.md: accuracies asked for, and their price."""
    r = json.loads((RESULTS / "accuracy.json").read_text())
    lines = [
        "| problems | asked for | certified | of these reached | of all reached "
        "| products of the certified, mean | best fixed counts |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in r["rows"]:
        best = row["best_fixed"]
        counts = f"{best['products']} ({best['inner']} + {best['linear']})" if best else "none reaches 99 %"
        cells = [
            f"{row['kind']} ({row['problems']})",
            f"{row['accuracy']:.0e}",
            f"{100 * row['certified']:.0f} %",
            f"{100 * row['of_them_below']:.1f} %",
            f"{100 * row['of_all_below']:.0f} %",
            f"{row['products']['mean']:.0f}",
            counts,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "accuracy.json")


def theory():
    """The result of `imaml bench theory`, as committed."""
    return json.loads((RESULTS / "theory" / "theory.json").read_text())


def corrected():
    """The table of docs/certificates.md: error against delta, and the price."""
    r = theory()["correction"]
    lines = [
        "| | slope of log error against log delta | error at the least and the largest delta | products |"
    ]
    lines.append("|---|---|---|---|")
    for name, errors in r["errors"].items():
        ends = f"{errors[0]:.1e}, {errors[-1]:.1e}"
        lines.append(f"| {name} | {r['slopes'][name]:.2f} | {ends} | {r['products'][name]:.0f} |")
    source = "`imaml bench theory` ([theory.json](../benchmarks/results/theory/theory.json))"
    return "\n".join(lines) + f"\n\n{source}"


def exponents():
    """The tables of docs/theory.md: fitted exponents of products, and memory and time by inner steps."""
    r = theory()
    accuracies = list(next(iter(r["products"]["exponents"].values())))
    heads = [f"to {float(a):.0e}" for a in accuracies]
    lines = ["| products grow with the condition number to the power of | " + " | ".join(heads) + " |"]
    lines.append("|---" * (1 + len(heads)) + "|")
    for name, found in r["products"]["exponents"].items():
        lines.append(f"| {name} | " + " | ".join(f"{found[a]:.2f}" for a in accuracies) + " |")
    lines += [
        "",
        "| Conv4, 20-way 5-shot, one task, inner steps | " + " | ".join(map(str, r["compiled_steps"])) + " |",
    ]
    lines.append("|---" * (1 + len(r["compiled_steps"])) + "|")
    for name, values in r["temporary_bytes"].items():
        lines.append(f"| {name}, MiB | " + " | ".join(f"{v / 2**20:,.0f}" for v in values) + " |")
    for name, values in r["seconds"].items():
        lines.append(f"| {name}, seconds | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    return "\n".join(lines) + "\n\n([theory.json](../benchmarks/results/theory/theory.json))"


def with_interval(pair, scale=1.0, digits=2, sign=False):
    """A mean with its interval, as text."""
    shown = f"{scale * pair[0]:+.{digits}f}" if sign else f"{scale * pair[0]:.{digits}f}"
    return shown if pair[1] is None else f"{shown} ± {scale * pair[1]:.{digits}f}"


def indefinite():
    """The tables of docs/indefinite.md."""
    r = json.loads((RESULTS / "indefinite.json").read_text())
    found = r["gradients"]
    size = found["at"][0]["parameters"]
    lines = [
        f"| network of {size} parameters, {found['rows'][0]['tasks']} tasks | A indefinite | told so "
        "| error against a dense solve of the same A, median | error against the solved problem, median "
        "| cosine with it, median |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [
            row["choice"],
            f"{100 * row['indefinite']:.0f} %",
            f"{100 * row['told']:.0f} %",
            f"{100 * row['error_against_dense']:.3g} %",
            _known(row["error_against_solved"], 100, ".3g", " %"),
            _known(row["cosine_with_solved"], 1, ".2f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    learned = r.get("learning")
    if not learned:
        return "\n".join(lines) + "\n\n" + _source(r, "indefinite.json")
    lines += [
        "",
        f"| learning, {learned['steps']} steps, {learned['seeds']} seeds, {learned['test_tasks']} test tasks "
        "| accuracy | less that of the first row, paired |",
        "|---|---|---|",
    ]
    for row in learned["rows"]:
        if "stopped" in row:
            lines.append(
                f"| {row['choice']} | {row['stopped']} of {learned['seeds']} runs stopped: no task usable | |"
            )
            continue
        gap = with_interval((row["less_first"], row["less_first_ci95"]), 100, 2, True)
        score = with_interval((row["accuracy"], row["accuracy_ci95"]), 100)
        lines.append(f"| {row['choice']} | {score} % | {gap} |")
    return "\n".join(lines) + "\n\n" + _source(r, "indefinite.json")


def _known(value, times, form, unit=""):
    """A figure, or that no task gave one."""
    return "no task solved" if value is None else f"{times * value:{form}}{unit}"


def _source(result, file):
    """What wrote a table, and the file it is from."""
    return f"`{result['command']}` ([{file}](../benchmarks/results/{file}))"


def delta():
    """The tables of docs/delta.md; "solved" of the results is said as what it is, run to the last step."""
    plainly = lambda choice: choice.replace("solved", "run to the last step")  # noqa: E731
    r = json.loads((RESULTS / "delta.json").read_text())
    lines = [
        "| new tasks of | stopped by | strength | steps | delta, mean | \\|F\\|, mean | score | loss "
        "| calibration error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, study in r["domains"].items():
        test = study["at_test_time"]
        for what, found in test["choices"].items():
            accurate = test["headline"] == "accuracy"
            score = with_interval(found[test["headline"]], 100 if accurate else 1)
            score = f"accuracy {score} %" if accurate else f"squared error {score}"
            cells = [name, plainly(what), f"{found['strength']:g}", found["steps"]]
            cells += [f"{found['delta'][0]:.2g}", f"{found['residual'][0]:.2g}", score]
            cells.append(with_interval(found["loss"], 1, 3))
            cells.append(with_interval(found["calibration_error"], 1, 3) if accurate else "")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| paired differences on test tasks | score | loss |", "|---|---|---|"]
    for name, study in r["domains"].items():
        test = study["at_test_time"]
        gaps = {}
        for gap in test["differences"]:
            gaps.setdefault((gap["first"], gap["second"]), {})[gap["measure"]] = (gap["mean"], gap["ci95"])
        for (first, second), both in gaps.items():
            scale = 100 if test["headline"] == "accuracy" else 1
            score = with_interval(both[test["headline"]], scale, 2, True)
            lines.append(
                f"| {name}: {plainly(first)}, less {plainly(second)} | {score} "
                f"| {with_interval(both['loss'], 1, 3, True)} |"
            )
    lines += [
        "",
        "| learned with inner steps | new tasks solved so | new tasks run to the last step |",
        "|---|---|---|",
    ]
    for name, study in r["domains"].items():
        if "in_learning" not in study:
            continue
        rows = study["in_learning"]["rows"]
        for count in dict.fromkeys(row["inner_steps"] for row in rows):
            cells = []
            for way in ("as learned", "solved"):
                row = next(x for x in rows if (x["inner_steps"], x["solved"]) == (count, way))
                known = "accuracy" in row
                key = "accuracy" if known else "loss"
                cells.append(
                    with_interval((row[key], row[f"{key}_ci95"]), 100 if known else 1)
                    + (" %" if known else "")
                )
            outer = study["in_learning"]["outer_steps"]
            lines.append(f"| {name}, {outer} outer steps: {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "delta.json")


STOCHASTIC = ("SGD", "SGD with decay", "SVRG")


def stochastic():
    """The tables of docs/stochastic_inner_loops.md: the best stochastic solver over the best other."""
    r = json.loads((RESULTS / "stochastic.json").read_text())
    conditions = list(dict.fromkeys(row["condition"] for row in r["table"]))
    lines = []
    for goal in ("delta 0.3", "delta 0.01", "meta-gradient to 1 %"):
        lines += [f"| {goal}: rows | " + " | ".join(f"condition {c:g}" for c in conditions) + " |"]
        lines.append("|---" * (1 + len(conditions)) + "|")
        for size in dict.fromkeys(row["rows"] for row in r["table"]):
            cells = []
            for condition in conditions:
                here = (size, condition, goal)
                rows = [row for row in r["table"] if (row["rows"], row["condition"], row["goal"]) == here]
                noisy = [row for row in rows if row["solver"] in STOCHASTIC and row["gradients"]]
                whole = [row for row in rows if row["solver"] not in STOCHASTIC and row["gradients"]]
                if not noisy or not whole:
                    cells.append("not reached" if not noisy else "only so")
                    continue
                least = [min(kind, key=lambda row: row["gradients"]) for kind in (noisy, whole)]
                share = least[0]["gradients"] / least[1]["gradients"]
                time = min(row["seconds"] for row in noisy) / min(row["seconds"] for row in whole)
                cells.append(f"{share:.2g} ({least[0]['solver']} / {least[1]['solver']}), time {time:.2g}")
            lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines) + f"`{r['command']}` ([stochastic.json](../benchmarks/results/stochastic.json))"


def stochastic_learning():
    """The second table of docs/stochastic_inner_loops.md."""
    r = json.loads((RESULTS / "stochastic_learning.json").read_text())
    lines = [
        f"| support, inner solver in learning | outer steps in {r['seconds']:.0f} s "
        "| mean squared error of new tasks | each seed's | less gradient descent's, paired "
        "| solved as learned |",
        "|---|---|---|---|---|---|",
    ]
    for size, rows in r["sizes"].items():
        for row in rows:
            steps = sum(run["steps"] for run in row["runs"]) / len(row["runs"])
            cells = [
                f"{size}, {row['solver']}",
                f"{steps:,.0f}",
                with_interval((row["loss"], row["loss_ci95"]), 1, 3),
                ", ".join(f"{loss:.2f}" for loss in row["loss_by_seed"]),
                with_interval((row["less_gradient_descent"], row["less_gradient_descent_ci95"]), 1, 3, True),
                f"{row['own_loss']:.3f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    name = "stochastic_learning.json"
    return "\n".join(lines) + f"\n\n`{r['command']}` ([{name}](../benchmarks/results/{name}))"


def last_days():
    """The table of docs/tables.md: people never seen."""
    r = json.loads((RESULTS / "last_days.json").read_text())
    lines = [
        "| first days seen | what | root mean squared error, ms | less the pooled model's, paired "
        "| less that of a model of its own, paired | 90 % intervals cover |",
        "|---|---|---|---|---|---|",
    ]
    for row in r["rows"]:
        cells = [str(row["first_days"]), row["what"], with_interval((row["rmse"], row["rmse_ci95"]), 1, 1)]
        for other in ("pooled model", "model of its own"):
            gap = row.get(f"less {other}")
            cells.append("" if gap is None else with_interval(gap, 1, 1, True))
        cells.append(with_interval(row["covered"], 100, 0) + " %" if "covered" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "last_days.json")


def posteriors():
    """The table of docs/bayes.md: how sure adapted networks are, with and without Laplace's posterior."""
    r = json.loads((RESULTS / "posteriors.json").read_text())
    lines = [
        "| run | answers by | tasks | accuracy | log loss | calibration error "
        "| AUROC of drawings of no class known |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in r["rows"]:
        cells = [
            f"{row['run']}, {row['ways']}-way {row['shots']}-shot, strength {row['strength']}",
            row["answers"],
            f"{row['tasks']:,}",
            with_interval(row["accuracy"], 100, 1) + " %",
            with_interval(row["nll"], 1, 3),
            with_interval(row["calibration_error"], 1, 3),
            with_interval(row["auroc"], 1, 3),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "posteriors.json")


def five_ways():
    """The table of docs/bayes.md: (a) to (e) on Omniglot, with and without Laplace's posterior."""
    from benchmarks.five_ways import LETTERS

    r = json.loads((RESULTS / "five_ways.json").read_text())
    lines = [
        "| tasks | way | answers by | accuracy | log loss | less (a)'s, paired | calibration error "
        "| less (a)'s, paired |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in r["rows"]:
        own = row["method"] == "imaml"
        cells = [
            f"{row['ways']}-way 1-shot, {row['tasks']}",
            f"({LETTERS[row['method']]}) `{row['method']}`",
            row["answers"],
            with_interval(row["accuracy"], 100, 1) + " %",
            with_interval(row["nll"], 1, 3),
            "" if own else with_interval(row["nll less (a)'s"], 1, 3),
            with_interval(row["calibration_error"], 1, 3),
            "" if own else with_interval(row["calibration_error less (a)'s"], 1, 3),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "five_ways.json")


def peers():
    """The tables of docs/performance.md: times of every peer on every work, memory, errors, what failed."""
    r = json.loads((RESULTS / "peers.json").read_text())
    names = list(dict.fromkeys(row["peer"] for row in r["rows"]))
    works = list(dict.fromkeys((row["title"], row["threads"]) for row in r["rows"]))
    found = {(row["peer"], row["title"], row["threads"]): row for row in r["rows"]}
    heads = [f"{title}, {threads} thread{'s' * (threads > 1)}" for title, threads in works]
    times = ["| ms, median (times imaml's) | " + " | ".join(heads) + " |", "|---" * (len(works) + 1) + "|"]
    for name in names:
        times.append(f"| {name} | " + " | ".join(_time(found.get((name, *work))) for work in works) + " |")
    rates = [f"{100 * found['imaml', *work]['of_rate']:.0f} %" for work in works]
    times.append("| imaml, of the matrix-multiply rate | " + " | ".join(rates) + " |")
    judged = [
        w for w in works if found["imaml", *w]["error"] is not None and w[1] == max(t for _, t in works)
    ]
    errors = ["| error | " + " | ".join(title for title, _ in judged) + " | what it is |"]
    errors.append("|---" * (len(judged) + 2) + "|")
    memory = ["| MiB at most, beside what was there | " + " | ".join(heads) + " |", times[1]]
    for name in names:
        rows = [found.get((name, *work)) for work in works]
        cells = ["" if row is None or row["peak_mib"] is None else f"{row['peak_mib']:,.0f}" for row in rows]
        memory.append(f"| {name} | " + " | ".join(cells) + " |")
    missing = []
    for name in names:
        rows = [found[name, *work] for work in judged]
        cells = ["" if row["error"] is None else f"{row['error']:.2g}" for row in rows]
        about = next((row["note"] for row in rows if row["ms_median"] is not None), "")
        errors.append(f"| {name} | " + " | ".join([*cells, about]) + " |")
        failed = [row for row in r["rows"] if row["peer"] == name and row["ms_median"] is None]
        for note in dict.fromkeys(row["note"] for row in failed):
            where = dict.fromkeys(row["title"] for row in failed if row["note"] == note)
            said = note.split(". ")[0].rstrip(".")  # of a long message, its first sentence
            missing.append(f"- {name} has no time on {'; '.join(where)}: {said}.")
    return "\n".join([*times, "", *memory, "", *errors, "", *missing]) + "\n\n" + _source(r, "peers.json")


def _time(row):
    if row is None:
        return "not run"
    if row["ms_median"] is None:
        return "none"
    ratio = row["times_imaml"]
    times = "" if row["peer"] == "imaml" else f" ({ratio:.2g})" if ratio < 10 else f" ({ratio:.0f})"
    return f"{row['ms_median']:,.3g}{times}" if row["ms_median"] < 1000 else f"{row['ms_median']:,.0f}{times}"


def growth():
    """The table of docs/performance.md: fitted exponents of time, products and memory."""
    r = json.loads((RESULTS / "growth.json").read_text())
    lines = ["| varied | values | time | products, counted | temporary memory |", "|---|---|---|---|---|"]
    for sweep in r["sweeps"]:
        values = f"{sweep['values'][0]} to {sweep['values'][-1]}"
        exponents = [round(sweep[f"exponent_{key}"], 2) for key in ("ms_min", "gflop", "temporary_bytes")]
        figures = [f"{exponent + 0.0:.2f}" for exponent in exponents]
        lines.append("| " + " | ".join([sweep["name"], values, *figures]) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "growth.json")


def roofline():
    """The table of docs/performance.md: where Conv4's step spends its time."""
    r = json.loads((RESULTS / "roofline.json").read_text())
    lines = []
    for work in r["works"]:
        said = (
            f"**{work['title']}**: {work['ms_median']:,.0f} ms, {100 * work['of_rate']:.0f} % of "
            f"{r['rate_gflops']:.0f} GFLOP/s. Its products alone, each at its shape's rate, would take "
            f"{work['ms_of_products_alone']:,.0f} ms: {100 * work['of_rate_of_products_alone']:.0f} %."
        )
        lines += [said, "", "| part | share of the time | GFLOP/s in the step | alone |", "|---|---|---|---|"]
        for row in [row for row in work["products"] if row["share"] >= 0.02]:
            shape = f"{row['m']:,} x {row['k']:,} by {row['k']:,} x {row['n']:,}, {row['calls']:.0f} times"
            rates = f"{row['gflops_in_step']:.0f} | {row['gflops_alone']:.0f}"
            lines.append(f"| {shape} | {100 * row['share']:.0f} % | {rates} |")
        small = sum(row["share"] for row in work["products"] if row["share"] < 0.02)
        lines.append(f"| smaller products | {100 * small:.0f} % | | |")
        lines += [f"| {name} | {100 * share:.0f} % | | |" for name, share in work["others"].items()] + [""]
    return "\n".join(lines) + "\n" + _source(r, "roofline.json")


def any_inner():
    """The table of docs/any_inner.md: every domain's methods, and implicit MAML less each."""
    r = json.loads((RESULTS / "any_inner.json").read_text())
    lines = []
    for name, found in r["presets"].items():
        pairs = [row[what] for row in found["rows"] for what in ("score", "imaml_less_this")]
        least = min(pair[1] for pair in pairs if pair[1])
        digits = max(1, min(5, 1 - math.floor(math.log10(least))))  # two of the narrowest interval
        head = f"{found['score']}, {found['better']} is better"
        lines += [
            f"**{name}**, {found['tasks']} test tasks",
            "",
            f"| method | {head} | imaml less it, paired |",
        ]
        lines.append("|---|---|---|")
        for row in found["rows"]:
            gap = "" if row["method"] == "imaml" else with_interval(row["imaml_less_this"], 1, digits, True)
            failed = f", {row['failed']} tasks failed" if row["failed"] else ""
            lines.append(f"| {row['method']} | {with_interval(row['score'], 1, digits)}{failed} | {gap} |")
        for key, pair in found["baselines"].items():
            gap = with_interval(found["imaml_less_baselines"][key], 1, digits, True)
            lines.append(f"| {key.replace('_', ' ')} | {with_interval(pair, 1, digits)} | {gap} |")
        lines.append("")
    return "\n".join(lines) + "\n" + _source(r, "any_inner.json")


def trajectory():
    """The table of docs/any_inner.md: what the derivative of a plan costs."""
    r = json.loads((RESULTS / "trajectory.json").read_text())
    plants = r["horizons"][0]["plants"]
    lines = [f"| horizon | {plants} sweeps, ms | temporary KiB | plans converged |", "|---|---|---|---|"]
    for row in r["horizons"]:
        size, share = row["temporary_bytes"] / 1024, 100 * row["converged"]
        lines.append(f"| {row['horizon']} | {row['milliseconds'][0]:.2f} | {size:,.0f} | {share:.0f} % |")
    lines += ["", f"Time grows with the horizon to the power of {r['exponent']:.2f}.", ""]
    lines += ["| iterations at horizon 200 | through the iterations, in sweeps | temporary MiB | ours, MiB |"]
    lines.append("|---|---|---|---|")
    for row in r["at horizon 200"]:
        sizes = [f"{row[key] / 2**20:.2f}" for key in ("temporary_bytes", "ours_temporary_bytes")]
        lines.append(f"| {row['iterations']} | {row['times_as_long']:.0f} | " + " | ".join(sizes) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "trajectory.json")


def digits(number):
    """Three digits, or all before the point, without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def signed(share):
    """A percentage with its sign, and none for nothing."""
    return f"{100 * share:+.0f} %" if abs(share) >= 0.005 else "0 %"


def dry_run():
    """The table of docs/performance.md: what a dry run predicts of each preset, and what training takes."""
    r = json.loads((RESULTS / "dry_run.json").read_text())
    lines = [
        "| preset | a step, predicted, ms | in training | off | memory, predicted, MiB | in training | off "
        "| with the report at the end, MiB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in r["rows"]:
        times = f"{digits(row['ms_predicted'])} | {digits(row['ms'])} | {signed(row['ms_off'])}"
        sizes = f"{row['mib_predicted']:,.0f} | {row['mib']:,.0f} | {signed(row['mib_off'])}"
        lines.append(f"| {row['preset']} | {times} | {sizes} | {row['mib_in_all']:,.0f} |")
    left = f"Not run, for want of data: {', '.join(r['left_out'])}.\n\n" if r["left_out"] else ""
    return "\n".join(lines) + f"\n\n{left}" + _source(r, "dry_run.json")


def startup():
    """The table of docs/performance.md: seconds until something happens."""
    r = json.loads((RESULTS / "startup.json").read_text())
    lines = ["| what | seconds, median (least to most) |", "|---|---|"]
    for row in r["rows"]:
        lines.append(f"| {row['what']} | {row['median_s']:.2f} ({row['min_s']:.2f} to {row['max_s']:.2f}) |")
    return "\n".join(lines) + "\n\n" + _source(r, "startup.json")


def mixed():
    """The table of docs/bayes.md: the mixed model by `tables-evidence` and by statsmodels."""
    r = json.loads((RESULTS / "mixed.json").read_text())
    lines = [
        "| table | rows | seconds | apart: fixed effects | covariance | residual variance | groups' effects "
        "| from the truth, in standard errors: fixed, variances, residual |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in r["rows"]:
        apart = row.get("difference")
        names = ("mean", "covariance", "noise_variance", "effects")
        gaps = [f"{apart[name]:.1e}" for name in names] if apart else ["no fit by statsmodels", "", "", ""]
        truth = row.get("standard_errors_from_truth")
        far = ", ".join(f"{value:.1f}" for value in truth.values()) if truth else ""
        cells = [row["table"], str(row["rows"]), f"{row['imaml']['seconds']:.0f}", *gaps, far]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _source(r, "mixed.json")


def waves():
    """The table of docs/bayes.md: intervals of sinusoids from five points."""
    r = json.loads((RESULTS / "sinusoid_intervals.json").read_text())
    gap = with_interval(r["squared_error_less_imaml"], 1, 2, True)
    lines = [
        f"| {r['tasks']:,} test tasks | |",
        "|---|---|",
        f"| covered by {100 * r['level']:.0f} % intervals | {with_interval(r['covered'], 100)} % |",
        f"| within {r['close']} of a support point | {100 * r['covered_near']:.1f} % |",
        f"| farther away | {100 * r['covered_away']:.1f} % |",
        f"| median width, near and away | {r['median_width_near']:.2f} and {r['median_width_away']:.2f} |",
        f"| root mean squared error | {r['rmse']:.3f} |",
        f"| that of preset `sinusoid` with 5 points | {r['rmse_imaml']:.2f} |",
        f"| mean squared error less that preset's, paired | {gap} |",
    ]
    return "\n".join(lines) + "\n\n" + _source(r, "sinusoid_intervals.json")
