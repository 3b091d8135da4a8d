"""The new domain of docs/extend: trained, saved, loaded in another process, adapted, reported."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

import imaml
from helpers.paths import ROOT
from imaml.report.examples import examples
from imaml.report.run_page import write_report

FILE = ROOT / "docs" / "extend" / "my_domain.py"
ELSEWHERE = f"""
import sys
sys.path.insert(0, {str(FILE.parent)!r})
import imaml, my_domain
learner = imaml.load(sys.stdin.read())
print(learner.adapt([[0.0], [0.5], [1.0]], [[1.0], [0.61], [0.37]]).predict([[1.5]])[0, 0])
"""

pytestmark = [pytest.mark.usefixtures("ranks_mixed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("my_domain", FILE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["my_domain"] = found
    spec.loader.exec_module(found)
    yield found
    del sys.modules["my_domain"]


def test_a_domain_of_one_s_own_in_one_file(module, tmp_path, capsys):
    out = tmp_path / "run"
    module.main(str(out))
    assert "loss" in capsys.readouterr().out
    learner = imaml.load(out)
    predictor = learner.adapt([[0.0], [0.5], [1.0]], [[1.0], [0.61], [0.37]])
    (found,) = predictor.predict([[1.5]]).ravel()
    assert abs(found - 0.22) < 0.2
    options = {"input": str(out), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], check=False, **options)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(float(done.stdout), found, atol=1e-4)  # in float32
    page = write_report(out, examples(learner, 2)).read_text()
    assert "Task 2" in page
    with pytest.raises(imaml.DataError, match=r"times: expected shape \(n, 1\)"):
        learner.adapt([0.0, 1.0], [1.0, 0.5])
    task = learner.domain.sample(jax.random.key(0), "test")
    assert learner.adapt(task.support).predict(task.query).shape == (10, 1)
