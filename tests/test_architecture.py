"""The layout of the package: imports go one way, files are short, and nobody asks which class it has."""

import ast
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from imaml.core import recipes
from imaml.domains.base import DomainBase
from imaml.meta.gradient import MetaGradient

PACKAGE = ROOT / "src" / "imaml"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 600


def test_imports_go_one_way():
    """The contract is in pyproject.toml, in [tool.importlinter]."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_are_short():
    long = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_modules_are_in_packages():
    direct = {file.stem for file in PACKAGE.glob("*.py")}
    assert direct == {"__init__", "__main__", "predict"}


def homes():
    """The package of each recipe, domain and method class."""
    kinds = {
        kind for role in ("domain", "method", "linear", "inner") for kind in recipes.kinds_of(role).values()
    }
    classes = {DomainBase, MetaGradient}
    for kind in list(classes) + list(kinds):
        classes |= {kind, *kind.__subclasses__()}
    return {
        kind.__name__: kind.__module__.split(".")[1]
        for kind in classes
        if kind.__module__.startswith("imaml.")
    }


def asked(file):
    """What a file asks of objects: (line, question)."""
    owners, package = homes(), file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(file.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
            continue
        if node.func.id == "isinstance":
            names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            if any(owners.get(name, package) != package for name in names):
                yield node.lineno, ast.unparse(node)
        elif node.func.id == "hasattr":
            words = ast.unparse(node.args[0]).replace("_", ".").split(".")
            own = {"domain": "domains", "recipe": "domains", "method": "meta"}
            if any(own.get(word, package) != package for word in words):
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nobody_asks_which_class_it_is(file):
    assert list(asked(file)) == []
