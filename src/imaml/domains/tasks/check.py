"""What a file or folder of tasks holds, and what is wrong with it: `imaml data check`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from ...core.errors import DataError, ImamlError
from ...core.tree import Tree
from ...core.validation import some_of
from ..fewshot.pixels import read_image
from .collection import Tasks
from .folders import image_paths
from .layout import leaves_by_name, names_of
from .others import large_enough
from .sources import TasksFile, read_arrays, read_columns
from .values import labels_of

FEW_TASKS = 10  # below which scores say little
RARE = 20  # times as many rows of the commonest class as of the rarest
COPIES = 4  # times as many equal rows as by chance are copies
RICH = 3  # columns above which equal rows are no coincidence, even of whole numbers


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        severity: "error" if no run can use the data as they are, or "warning".
        message: What was found.
        advice: What to do about it, or empty.
    """

    severity: Literal["error", "warning"]
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        path: The file or folder.
        facts: Counts by name.
        findings: What is wrong, errors first.
    """

    path: str
    facts: dict[str, Tree] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def status(self) -> str:
        """What a user may do with the data: "clean", "warnings" or "unusable"."""
        found = {finding.severity for finding in self.findings}
        return "unusable" if "error" in found else "warnings" if found else "clean"

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        findings = [finding._asdict() for finding in self.findings]
        return {"path": self.path, "status": self.status, "facts": self.facts, "findings": findings}

    def __str__(self) -> str:
        """Return the report as text: facts, then a line or two for each finding."""
        width = max(map(len, self.facts), default=0)
        lines = [self.path, *(f"  {name:<{width}}  {value}" for name, value in self.facts.items())]
        for severity, message, advice in self.findings:
            lines.append(f"{severity}: {message}")
            lines += [f"  do: {advice}"] * bool(advice)
        counts = Counter(finding.severity for finding in self.findings)
        words = {"clean": "nothing to fix", "warnings": "usable, with", "unusable": "not usable:"}
        parts = [f"{n} {kind}{'s' * (n != 1)}" for kind, n in sorted(counts.items())]
        return "\n".join([*lines, f"{words[self.status]} {' and '.join(parts)}".rstrip()])


def check(file: TasksFile) -> Report:
    """Look for what is wrong with the tasks in a file or folder.

    Args:
        file: Where they are.

    Returns:
        Counts, and what is wrong.

    Example:
        >>> report = check(TasksFile("nowhere.npz"))
        >>> report.status, report.findings[0].message
        ('unusable', 'nowhere.npz: expected an .npz file with arrays x, y and groups, got no such file')
    """
    facts: dict[str, Tree] = {}
    found: list[Finding] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tasks = file.read()
            facts, found = _of_tasks(tasks, file)
            usable = large_enough(tasks, None)
            found += _of_splits(tasks, usable, file)
        except ImamlError as error:
            found += [_finding("error", error), *_details(file)]
    # The readers warn of what they exclude; each warning is reported once.
    messages = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, RuntimeWarning))
    found += [_finding("warning", message) for message in messages]
    return Report(file.path, facts, tuple(sorted(found, key=lambda finding: finding.severity)))


def _finding(severity: Literal["error", "warning"], message: object) -> Finding:
    what, _, advice = str(message).partition(" Hint: ")
    return Finding(severity, what.removeprefix("fit: ").rstrip("."), advice.rstrip("."))


def _of_tasks(tasks: Tasks, file: TasksFile) -> tuple[dict[str, Tree], list[Finding]]:
    """Counts of tasks that could be read, and what is odd about their rows."""
    what = "classes" if tasks.episodes else "tasks"
    sizes = f"{tasks.counts.min()} to {tasks.counts.max()}, median {np.median(tasks.counts):g}"
    rows = "images" if file.form == "images" else "rows"
    facts: dict[str, Tree] = {what: len(tasks), rows: int(tasks.counts.sum()), f"{rows} of each": sizes}
    if tasks.split is not None:
        facts |= {f"split {name}": len(groups) for name, groups in tasks.split.items()}
    found: list[Finding] = []
    names = tasks.frame.features if tasks.frame is not None else ()
    for name, array in zip(names_of_inputs(tasks), tasks.inputs, strict=True):
        facts[name] = f"{'x'.join(map(str, array.shape[1:])) or 'one number'}, {array.dtype}"
        if array.ndim > 2:  # images and signals may have constant corners
            continue
        flat = array.reshape(len(array), -1)
        constant = np.flatnonzero((flat == flat[0]).all(axis=0)).tolist()
        if constant and len(array) > 1:
            listed = [names[i] if names else str(i) for i in constant]
            advice = "omit them, as they say nothing"
            found.append(Finding("warning", f"{name}: constant columns ({some_of(listed)})", advice))
    found += _of_targets(tasks, facts)
    found += _of_copies(tasks, rows)
    return facts, found


def names_of_inputs(tasks: Tasks) -> list[str]:
    """Return what messages call the arrays of tasks' inputs.

    Args:
        tasks: The tasks.

    Returns:
        "x", or "x/NAME" of a tree.
    """
    return [f"x/{name}" if name else "x" for name in names_of(json.loads(tasks.structure))]


def _of_targets(tasks: Tasks, facts: dict[str, Tree]) -> list[Finding]:
    """The balance of classes, or the range of numbers."""
    y = tasks.targets
    if y is None:
        return []
    if y.dtype.kind not in "Ob":
        facts["y"] = f"numbers from {y.min():.4g} to {y.max():.4g}"
        if y.min() == y.max():
            return [Finding("error", f"y: all targets are {y.flat[0]:g}", "choose another target")]
        return []
    labels = labels_of(y, "y")
    counts = Counter(labels)
    shown = [f"{label}: {n}" for label, n in counts.most_common()]
    facts["y"] = f"{len(counts)} classes ({some_of(shown)})"
    found = []
    if len(counts) < 2:
        found.append(Finding("error", "y: all rows have one class", "choose another target"))
    ordered = counts.most_common()
    if ordered[0][1] > RARE * ordered[-1][1]:
        message = f"y: {ordered[-1][0]!r} has {ordered[-1][1]} rows, {ordered[0][0]!r} has {ordered[0][1]}"
        advice = "compare the loss of a run with the baseline 'most frequent class', or join rare classes"
        found.append(Finding("warning", message, advice))
    owner = np.repeat(np.arange(len(tasks)), tasks.counts)
    homes: dict[object, set[int]] = defaultdict(set)
    for label, task in zip(labels, owner.tolist(), strict=True):
        homes[label].add(task)
    single = [str(label) for label, where in homes.items() if len(where) == 1]
    if single and len(tasks) > 1:
        message = f"y: {len(single)} classes are in one task only ({some_of(single)})"
        found.append(Finding("warning", message, "check their spelling, or join them with others"))
    return found


def _of_copies(tasks: Tasks, rows: str) -> list[Finding]:
    """Rows that are in two tasks, so that one reveals the other, and images that come twice."""
    arrays = [np.ascontiguousarray(array).reshape(len(array), -1) for array in tasks.inputs]
    if tasks.targets is not None:
        y = tasks.targets
        coded = np.unique(y.astype(str), return_inverse=True)[1] if y.dtype.kind == "O" else y
        arrays.append(np.ascontiguousarray(coded).reshape(len(y), -1))
    whole = all(array.dtype.kind in "iub" or (array == np.round(array)).all() for array in arrays)
    columns = sum(array.shape[1] for array in arrays)
    rich = not whole or columns > RICH
    digests = _digests(arrays)
    owner = np.repeat(np.arange(len(tasks)), tasks.counts).tolist()
    members: dict[tuple, list[str]] = defaultdict(list)
    for number, (first, count) in enumerate(zip(tasks.first, tasks.counts, strict=True)):
        members[tuple(sorted(digests[first : first + count]))].append(str(tasks.names[number]))
    same = [" = ".join(names) for names in members.values() if len(names) > 1]
    what = "classes" if tasks.episodes else "tasks"
    found = []
    advice = "keep one of them, otherwise test tasks also occur in training"
    if same and (rich or columns * tasks.counts.min() > RICH**2):
        message = f"{len(same)} sets of {what} have the same {rows} ({some_of(same)})"
        found.append(Finding("warning", message, advice))
    shared, chance = _in_two_tasks(digests, owner), 0
    if shared and tasks.targets is not None and arrays[-1].dtype.kind == "f":
        # Coarse values coincide. So do they with the targets of other rows, those of about the same size.
        order = np.argsort(arrays[-1][:, 0], kind="stable")
        shuffled = np.empty_like(arrays[-1])
        for part in np.array_split(order, max(1, min(20, len(order) // 20))):
            shuffled[part] = arrays[-1][np.random.default_rng(0).permutation(part)]
        chance = len(_in_two_tasks(_digests([*arrays[:-1], shuffled]), owner))
    if len(shared) > COPIES * chance and rich and not same:
        names = [str(tasks.names[i]) for i in dict.fromkeys(task for tasks_of in shared for task in tasks_of)]
        number = len(shared)
        message = f"{number} {rows} are in two {what} or more ({some_of(names)})"
        found.append(Finding("warning", message, advice.replace("one of them", "each in one")))
    if tasks.episodes:
        pairs = Counter(zip(digests, owner, strict=True))
        twice = [str(tasks.names[task]) for (_, task), times in pairs.items() if times > 1]
        if twice:
            classes = some_of(list(dict.fromkeys(twice)))
            message = f"{len(twice)} {rows} come twice in their class ({classes})"
            found.append(Finding("warning", message, "delete the copies, else queries are also examples"))
    return found


def _digests(arrays: list[np.ndarray]) -> list[bytes]:
    """A digest of each row of the arrays together."""
    return [
        hashlib.blake2b(b"|".join(array[i].tobytes() for array in arrays), digest_size=16).digest()
        for i in range(len(arrays[0]))
    ]


def _in_two_tasks(digests: list[bytes], owner: list[int]) -> list[set[int]]:
    """The tasks of each row that is in two tasks or more."""
    where: dict[bytes, set[int]] = defaultdict(set)
    for digest, task in zip(digests, owner, strict=True):
        where[digest].add(task)
    return [tasks_of for tasks_of in where.values() if len(tasks_of) > 1]


def _of_splits(tasks: Tasks, usable: np.ndarray, file: TasksFile) -> list[Finding]:
    """Whether there are enough tasks for training, validation and testing."""
    what, least = ("classes", 2) if tasks.episodes else ("tasks", 1)
    sizes = {
        name: len(numbers)
        for name, numbers in tasks.splits(file.validation, file.test, file.seed, usable).items()
        if len(numbers) or tasks.split is None
    }
    name, fewest = min(sizes.items(), key=lambda part: part[1])
    if fewest < least:
        share = 1.05 * least / max(int(usable.sum()), 1)
        advice = f"bring more {what}"
        if tasks.split is None and share < 0.45:
            advice += f", or set the shares, --validation={share:.2f} --test={share:.2f}"
        message = f"{fewest} {what} for {name!r}, where a run needs {least}"
        return [Finding("error", message, advice)]
    if usable.sum() < FEW_TASKS:
        message = f"{usable.sum()} {what}: scores on the few that are held out say little"
        return [Finding("warning", message, f"bring more {what}")]
    return []


def _details(file: TasksFile) -> list[Finding]:
    """All that is wrong with the values of tasks that cannot be read; the reader stops at the first."""
    found: list[Finding] = []
    try:
        if file.form == "images":
            for path in image_paths(file.path):
                try:
                    read_image(path, file.side, 3 if file.colour else 1)
                except DataError as error:
                    found.append(_finding("error", error))
            return found[1:]  # the reader has reported the first
        if file.form == "frame":
            arrays = {name: np.asarray(column) for name, column in read_columns(file.path).items()}
        else:
            content = read_arrays(file.path)
            arrays = leaves_by_name(content.pop("x"), "x") if "x" in content else {}
            arrays = {f"x/{name}" if name else "x": array for name, array in arrays.items()}
            arrays |= {name: np.asarray(array) for name, array in content.items()}
    except ImamlError:
        return []
    for name, array in arrays.items():
        gone = np.array([item is None for item in array]) if array.dtype.kind == "O" else np.zeros(1, bool)
        if array.dtype.kind == "f":
            gone = ~np.isfinite(array)
        if gone.any():
            row = int(np.argwhere(gone)[0][0])
            message = f"{name}: {int(gone.sum())} cells are missing or not finite, the first in row {row}"
            found.append(Finding("error", message, "drop these rows, or fill them in"))
    return found
