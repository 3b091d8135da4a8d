"""The committed artefacts give the answers that they gave before the packages were rebuilt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import imaml
from helpers import recorded
from helpers.paths import ROOT

CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
BEFORE = json.loads((ROOT / "tests" / "recorded" / "artefacts.json").read_text())


@pytest.mark.slow
def test_answers_are_those_recorded():
    """Adapted parameters are equal bit for bit with the processor and the jaxlib of the record.

    Probabilities are then equal to 3e-7: they came from a program for one row, and now come from one that
    takes the rows in a loop, in which XLA fuses the softmax. With others they are equal to 1e-3.

    `python tests/helpers/recorded.py > tests/recorded/artefacts.json` records them anew.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PJRT_"))
    }
    # Artefacts of equal networks share their programs, which have the same bits from the cache.
    kept |= {name: os.environ[name] for name in CACHE}
    kept |= {"PYTHONPATH": str(Path(imaml.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, recorded.__file__]
    found = json.loads(subprocess.run(command, env=kept, capture_output=True, check=True).stdout)
    assert found["answers"].keys() == BEFORE["answers"].keys()
    same = all(found[name] == BEFORE[name] for name in ("machine", "jaxlib"))
    for name, before in BEFORE["answers"].items():
        for one, other in zip(found["answers"][name], before, strict=True):
            np.testing.assert_allclose(one["values"], other["values"], rtol=0, atol=3e-7 if same else 1e-3)
            if same:
                assert (one["task"], one["phi"]) == (other["task"], other["phi"])
