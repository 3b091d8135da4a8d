"""The tables of README.md and docs/, from result files and the templates beside this file.

A template has a page's name and a block for each table, which replaces what is between the page's marks.
"""

import math
import re
import sys
from pathlib import Path

import jinja2

from benchmarks.harness import ROOT, Result
from imaml.compare.variants import ROWS
from imaml.report.comparison_page import markdown

START, END = "<!-- {}: python -m benchmarks render -->", "<!-- end of {} -->"


def percent(value, digits=0):
    """Formats a share in per cent."""
    return f"{100 * value:.{digits}f} %"


def mean(pair, scale=1.0, digits=2, sign=False):
    """Formats a mean with the half-width of its interval."""
    shown = f"{scale * pair[0]:{'+' if sign else ''}.{digits}f}"
    return shown if pair[1] is None else f"{shown} ± {scale * pair[1]:.{digits}f}"


def named(row, key, *how):
    """Formats the mean that a row has as `key` and `key`_ci95."""
    return mean((row[key], row[f"{key}_ci95"]), *how)


def command(text):
    """Returns a recorded command as it is written now."""
    return re.sub(r"python -m benchmarks\.(\w+)|imaml bench (?=theory)", r"python -m benchmarks run \1", text)


def source(file):
    """Returns the command that wrote a result file, and a link to it."""
    path = Path(file)
    return f"`{command(Result.read(path).command)}` ([{path.name}](../benchmarks/results/{path}))"


def result(file):
    """Returns a result file's content, without its machine."""
    return Result.read(file).to_json()


def least_digits(preset):
    """Returns the digits that show two of a preset's narrowest interval."""
    pairs = [row[what] for row in preset["rows"] for what in ("score", "imaml_less_this")]
    return max(1, min(5, 1 - math.floor(math.log10(min(pair[1] for pair in pairs if pair[1])))))


def fewest(rows, size, condition, goal, stochastic):
    """Returns the solver with the fewest gradients of a kind, its count, and the kind's least seconds."""
    found = [row for row in rows if (row["rows"], row["condition"], row["goal"]) == (size, condition, goal)]
    found = [row for row in found if row["gradients"] and (row["solver"] in stochastic[0]) == stochastic[1]]
    least = {"least": min((row["seconds"] for row in found), default=None)}
    return min(found, key=lambda row: row["gradients"]) | least if found else None


def render(check):
    """Writes the tables into the pages, or says where they differ; returns the exit status."""
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), **options)
    made.filters |= {function.__name__: function for function in (percent, mean, named, command)}
    made.filters["f"] = format
    given = (result, source, least_digits, fewest, markdown)
    made.globals |= {function.__name__: function for function in given} | {"ROWS": ROWS}
    differing = []
    for name in made.list_templates():
        page = ROOT / name if name == "README.md" else ROOT / "docs" / name
        text = old = page.read_text()
        template = made.get_template(name)
        for block, write in template.blocks.items():
            start, end = START.format(block), END.format(block)
            content = "".join(write(template.new_context())).strip()
            text = f"{text.split(start)[0]}{start}\n\n{content}\n\n{end}{text.split(end)[1]}"
        if text != old:
            differing.append(name)
            if not check:
                page.write_text(text)
    if check and differing:
        print(f"the tables of {', '.join(differing)} differ from the result files.", file=sys.stderr)
    return int(check and bool(differing))
