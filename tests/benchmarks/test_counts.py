"""Counts of whole steps against the committed ones."""

import subprocess
import sys

import pytest
from benchmarks.numerics import counts

from helpers.paths import ROOT


@pytest.mark.long
def test_counts_of_whole_steps_are_the_committed_ones():
    """In a process of its own, compiled as users compile it: float32, optimised."""
    command = [sys.executable, "-m", "benchmarks", "run", "counts", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_change_of_counts_is_told():
    found = {"flops": 10, "temporary_bytes": 100, "compilations": 1, "all_reduces": 1}
    assert counts.differences("w", found, {**found, "temporary_bytes": 109}) == []
    (said,) = counts.differences("w", {**found, "temporary_bytes": 120}, found)
    assert "temporary_bytes: 120, committed 100" in said
    (said,) = counts.differences("w", {**found, "flops": 11}, found)
    assert "flops: 11, committed 10" in said
