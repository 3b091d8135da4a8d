"""Docstrings are complete, and every example in them and in docs/ runs, in float32 as users see it.

Examples run in processes of their own. The check for completeness reads the source and imports nothing.
"""

import ast
import re
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from helpers.processes import QUICK

RUNNER = """
import doctest, importlib, pkgutil, sys
import imaml
failed = tried = 0
here = lambda name: name.partition(".")[2].partition(".")[0] == sys.argv[1]
names = [one.name for one in pkgutil.walk_packages(imaml.__path__, "imaml.") if here(one.name)]
for name in names:
    if name.endswith("__main__"):
        continue
    result = doctest.testmod(importlib.import_module(name))
    failed, tried = failed + result.failed, tried + result.attempted
    if result.attempted:
        print(name, result.attempted)
print("examples", tried)
sys.exit(bool(failed))
"""
# What lies directly in src/imaml and has examples. Each runs in a process of its own, side by side.
PACKAGE = ROOT / "src" / "imaml"
FILES = [path for path in PACKAGE.rglob("*.py") if re.search(r"^\s*>>> ", path.read_text(), flags=re.M)]
PARTS = sorted({path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES})


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def parameters(function):
    """Return the names of a function's parameters, without self and cls."""
    spec = function.args
    every = [*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg]
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


def missing_sections(function):
    """Return the sections that a docstring lacks.

    A function without parameters needs none, as its first line says what it returns.
    """
    text = ast.get_docstring(function) or ""
    names = parameters(function)
    if not names:
        return []
    result = ast.unparse(function.returns) if function.returns else "None"
    missing = [] if "Args:" in text else ["Args"]
    if result not in ("None", "NoReturn") and "Returns:" not in text and "Yields:" not in text:
        missing.append("Returns")
    return missing


def is_exempt(function):
    """Return whether a function needs no sections: private, a property, or the signature of an overload."""
    decorators = {one.id for one in function.decorator_list if isinstance(one, ast.Name)}
    return function.name.startswith("_") or bool(decorators & {"property", "overload"})


def public_classes(tree):
    """Yield a module's public classes, with those inside others."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from public_classes(node)


def ancestors(name, bases):
    """Return the names of a class's direct and indirect base classes."""
    found, waiting = set(), list(bases.get(name, ()))
    while waiting:
        base = waiting.pop()
        if base not in found:
            found.add(base)
            waiting += bases.get(base, ())
    return found


def incomplete_docstrings(sources):
    """Return "PATH: NAME lacks SECTIONS" for each public function and method without its sections.

    A method is complete if the same method of a base class is, or of a protocol, which classes match without
    deriving from it. Its own docstring may then be one line.

    Args:
        sources: Source text by path.
    """
    trees = {path: ast.parse(text) for path, text in sources.items()}
    bases = {}  # names of base classes by class
    documented = set()  # (class, method) pairs with all sections
    for tree in trees.values():
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            plain = [base.value if isinstance(base, ast.Subscript) else base for base in cls.bases]
            bases.setdefault(cls.name, set()).update(ast.unparse(base).split(".")[-1] for base in plain)
            methods = [node for node in cls.body if isinstance(node, FUNCTIONS)]
            documented |= {(cls.name, one.name) for one in methods if not missing_sections(one)}

    protocols = {name for name, above in bases.items() if "Protocol" in above}

    lines = []
    for path, tree in trees.items():
        for owner in [None, *public_classes(tree)]:
            parents = ancestors(owner.name, bases) | protocols if owner else set()
            for one in (owner or tree).body:
                if not isinstance(one, FUNCTIONS) or is_exempt(one):
                    continue
                missing = missing_sections(one)
                if missing and not any((parent, one.name) in documented for parent in parents):
                    name = f"{owner.name}.{one.name}" if owner else one.name
                    lines.append(f"{path}: {name} lacks {' and '.join(missing)}")
    return lines


def test_public_functions_document_their_arguments_and_results():
    package = ROOT / "src"
    sources = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    lines = incomplete_docstrings(sources)
    assert not lines, f"{len(lines)} docstrings are incomplete:\n" + "\n".join(lines)


def test_the_docstring_check_finds_what_is_missing():
    source = '''
class Base:
    def full(self, x) -> int:
        """Return x.

        Args:
            x: A number.

        Returns:
            The number.
        """

    def bare(self, x) -> int:
        """Return x."""

    def nothing(self, x) -> None:
        """Take x."""

    def _private(self, x) -> int: ...

class Child(Base):
    def full(self, x) -> int:
        """Return x, as the base says."""

class Other:
    def full(self, x) -> int:
        """Return x, but no base says so."""

    def declared(self, x) -> int:
        """Return x, as the protocol says."""

class Declares(Protocol):
    def declared(self, x) -> int:
        """Return x.

        Args:
            x: A number.

        Returns:
            The number.
        """

def function(*rows) -> int: ...
'''
    assert incomplete_docstrings({"a.py": source}) == [
        "a.py: function lacks Args and Returns",
        "a.py: Base.bare lacks Args and Returns",
        "a.py: Base.nothing lacks Args",
        "a.py: Other.full lacks Args and Returns",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_examples_in_docstrings(part):
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, part], capture_output=True, text=True, check=False, env=QUICK
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(run.stdout.split()[-1]) > 0, run.stdout


PAGES = [("gotchas", 8), ("methods", 2), ("certificates", 1), ("bayes", 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "least"), PAGES)
def test_examples_in_the_documents(page, least):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) >= least
    run = subprocess.run(
        [sys.executable, "-c", "".join(blocks)], capture_output=True, text=True, check=False, env=QUICK
    )
    assert run.returncode == 0, run.stderr
