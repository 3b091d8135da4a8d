"""Counts lines of code, without docstrings, comments and blank lines.

python -m benchmarks run lines_of_code [--folders src benchmarks]
"""

import ast
import io
import tokenize

from benchmarks.harness import ROOT, benchmark

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text):
    """Returns how many lines of a Python text have a token of code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT and token.string.strip():
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


@benchmark("lines_of_code", result=None)
def main(run, folders=("src", "benchmarks", "tests", "examples")):
    """Counts each folder; writes where `--out` is given."""
    for folder in folders:
        counts = [code_lines(file.read_text()) for file in (ROOT / folder).rglob("*.py")]
        run.add({"folder": folder, "files": len(counts), "lines": sum(counts)})
