"""FLOPs against counts by hand, what the commands print, and whole steps against committed counts."""

import json

import jax
import jax.numpy as jnp
import pytest

import imaml
from imaml.cli.main import main
from imaml.domains.networks import Conv4
from imaml.training.cost import count_flops

SMALL = ["--domain.hidden=4", "--training.tasks=2", "--method.inner.steps=1", "--method.linear.steps=1"]


@pytest.fixture(autouse=True)
def ranks():
    """Networks add biases to batches."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_an_mlp_and_its_gradient_as_counted_by_hand():
    """Forward: 2 n (16 24 + 24 5). Backward: the weights' gradients as much again, and the hidden layer's."""
    x, first, second = jnp.ones((7, 16)), jnp.ones((16, 24)), jnp.ones((24, 5))

    def loss(weights):
        return jnp.sum((jnp.tanh(x @ weights[0]) @ weights[1]) ** 2)

    forward, hidden = 2 * 7 * (16 * 24 + 24 * 5), 2 * 7 * 24 * 5
    assert count_flops(loss, (first, second)).flops == forward
    assert count_flops(jax.grad(loss), (first, second)).flops == 2 * forward + hidden


def test_conv4_as_counted_by_hand():
    """Four layers at stride 2: 28 -> 14 -> 7 -> 4 -> 2; a layer is outputs x (9 inputs) x 2, and the head."""
    network, n = Conv4(ways=5), 3
    theta = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((n, 28, 28, 1), jnp.float32)
    layers = sum(side**2 * 9 * channels * 64 for side, channels in ((14, 1), (7, 64), (4, 64), (2, 64)))
    forward = lambda theta, x: network.forward(theta, x)[0]  # noqa: E731
    assert count_flops(forward, theta, images).flops == 2 * n * (layers + 2 * 2 * 64 * 5)


def test_loops_branches_and_convolutions_as_counted_by_hand():
    a = jnp.ones((3, 3))

    def scanned(a):
        return jax.lax.fori_loop(0, 5, lambda _, b: a @ b, a)

    def searched(a):
        state = (jnp.asarray(0), a, jnp.asarray(True))
        step = lambda s: (s[0] + 1, a @ s[1], (s[0] + 1 < 4) & jnp.any(s[1] > 0))  # noqa: E731
        return jax.lax.while_loop(lambda s: s[2], step, state)[1]

    def endless(a):
        return jax.lax.while_loop(lambda b: jnp.sum(b) < 9.0, lambda b: a @ b, a)

    def branched(a):
        return jax.lax.cond(a[0, 0] > 0, lambda b: b @ b @ b, lambda b: b @ b, a)

    assert count_flops(scanned, a).flops == 5 * 54
    assert count_flops(searched, a).flops == 4 * 54
    assert count_flops(jax.vmap(searched), jnp.ones((2, 3, 3))).flops == 2 * 4 * 54
    assert (count_flops(endless, a).flops, count_flops(endless, a).unbounded) == (54, 1)
    assert count_flops(branched, a).flops == 2 * 54
    image, kernel = jnp.ones((2, 4, 8, 8)), jnp.ones((6, 4, 3, 3))
    convolve = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")  # noqa: E731
    assert count_flops(convolve, image, kernel).flops == 2 * (2 * 6 * 8 * 8) * (4 * 3 * 3)


SOLVERS = {
    "CG": lambda k: imaml.CG(steps=k),
    "CG for tasks": lambda k: imaml.CG(steps=k),
    "MINRES": lambda k: imaml.MINRES(steps=k),
    "Neumann": lambda k: imaml.Neumann(steps=k),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_of_a_solver_counts(name):
    """A product with a matrix of side 8 is 128 FLOPs; each step adds as much as the one before."""
    a = jnp.eye(8) * 2

    def counted(steps):
        def solved(b):
            return SOLVERS[name](steps)(lambda v: a @ v, b).value

        many = name == "CG for tasks"
        found = count_flops(jax.vmap(solved) if many else solved, jnp.ones((3, 8) if many else 8))
        assert found.unbounded == 0
        return found.flops / (3 if many else 1)

    first, second, third, tenth = (counted(k) for k in (1, 2, 3, 10))
    assert second - first >= 128
    assert third - second == second - first
    assert tenth - third == 7 * (second - first)


def test_a_preset_is_measured(capsys):
    assert main(["bench", "sinusoid", "--steps=2", "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 4 + 4 + 16 + 4 + 4 + 1
    assert found["flops"] > 0
    assert found["unbounded_loops"] == 0
    assert found["ms_min"] <= found["ms_median"] <= found["ms_max"]


@pytest.mark.slow
def test_a_dry_run_writes_nothing(capsys, tmp_path):
    assert main(["train", "sinusoid", "--dry-run", f"--out={tmp_path / 'run'}", *SMALL]) == 0
    out = capsys.readouterr().out
    for words in ("the median of a probe of", "predicted run", "nothing was trained"):
        assert words in out
    assert not list(tmp_path.iterdir())


def test_bench_refuses(capsys, tmp_path):
    assert main(["bench", "sinusoid", "--steps=0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert main(["bench", "sinusod"]) == 2
    assert "did you mean 'sinusoid'?" in capsys.readouterr().err
    assert main(["bench", "omniglot-5w1s", f"--data={tmp_path / 'none'}"]) == 2


def test_a_step_that_is_compiled_with_options_is_counted():
    """As users compile it: these tests compile without options."""
    step = jax.jit(lambda x: x @ x, compiler_options={"xla_backend_optimization_level": 1})
    assert count_flops(step, jnp.ones((2, 2))).flops == 16
