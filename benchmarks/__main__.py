"""The benchmarks' command line.

python -m benchmarks list                    # names, and what each measures
python -m benchmarks run NAME [--help]       # measures; writes benchmarks/results/NAME.json
python -m benchmarks render [--check]        # the tables of README.md and docs/ from the result files
"""

import ast
import difflib
import sys

from benchmarks import harness


def main(words: list[str]) -> int:
    """Runs a command; returns the exit status."""
    known = harness.names()
    match words:
        case ["list"]:
            for name, module in known.items():
                text = (harness.ROOT / f"{module.replace('.', '/')}.py").read_text()
                about = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
                print(f"{name:<20} {about}")
        case ["run", name, *options] if name.replace("-", "_") in known:
            return harness.start(name.replace("-", "_"), options)
        case ["run", name, *_]:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "python -m benchmarks list"
            print(f"run: there is no benchmark {name!r}. Hint: {hint}", file=sys.stderr)
            return 2
        case ["render", *options] if options in ([], ["--check"]):
            from benchmarks.pages.render import render

            return render(bool(options))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
