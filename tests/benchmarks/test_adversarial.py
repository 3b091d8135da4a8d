"""A small search for problems whose error is above its bound; the benchmark adversarial is the large one."""

import jax.numpy as jnp
import pytest
from benchmarks.numerics import adversarial

from imaml.meta import certificate

pytestmark = pytest.mark.slow

SMALL = {"evaluations": 300, "seed": 11, "strategies": ("random", "ascent")}
SEARCHES = [
    ("ridge, 2", "plain", "float64"),
    ("ridge, 2", "rough", "float64"),
    ("ridge, 2", "probed", "float64"),
    ("ridge, 2", "accuracy", "float32"),
    ("logistic, 1", "constant", "float64"),
    ("logistic, 2", "correct", "float64"),
    pytest.param("network, Gauss-Newton", "plain", "float64", marks=pytest.mark.long),
    pytest.param("head, tanh, undeclared", "learned", "float64", marks=pytest.mark.long),
]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Every call measures a whole batch, of which so small a search would leave most unused."""
    monkeypatch.setattr(adversarial, "BATCH", 32)


@pytest.mark.usefixtures("ranks_mixed")
@pytest.mark.parametrize(("kind", "variant", "dtype"), SEARCHES)
def test_a_small_search_breaks_no_bound(kind, variant, dtype):
    row = adversarial.search(kind, variant, dtype=dtype, **SMALL)
    assert row["violations"] == {"proved": 0, "certified": 0}, row["found"][:1]
    assert sum(row["certified"].values()) > 50
    assert row["worst_log10"] < 0


@pytest.mark.usefixtures("ranks_mixed")
def test_the_search_finds_a_bound_without_the_rate_of_the_system(monkeypatch):
    """As earlier certificates were where the Newton step showed no change."""
    real = certificate.measured

    def measured(*given):
        measure = real(*given)
        blind = lambda found: found._replace(system=jnp.zeros_like(found.system))  # noqa: E731
        return lambda *at: blind(measure(*at))

    monkeypatch.setattr(certificate, "measured", measured)
    adversarial.compiled.cache_clear()
    row = adversarial.search("ridge, 2", "rough", **SMALL)
    adversarial.compiled.cache_clear()
    assert row["violations"]["proved"] > 10
