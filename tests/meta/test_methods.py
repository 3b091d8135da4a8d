"""IMAML: its gradient is that of the mean over tasks; failed tasks, chunks, devices, and compilation."""

import dataclasses
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import imaml
from imaml.core import tree

COUNT, ROWS = 4, 6
RANDOM = np.random.default_rng(0)


def loss(phi, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ phi["body"]["weight"] + phi["body"]["bias"][None])
    return 0.5 * jnp.mean((hidden @ phi["head"] - targets) ** 2)


def query_loss(phi, theta, batch):
    """With a direct dependence on theta, so that the direct term is tested too."""
    return loss(phi, batch) + 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(theta))


def points(count=COUNT):
    return jnp.asarray(RANDOM.normal(size=(count, ROWS, 2))), jnp.asarray(RANDOM.normal(size=(count, ROWS)))


MEAN = {
    "body": {"bias": jnp.zeros(3), "weight": jnp.asarray(RANDOM.normal(size=(2, 3)))},
    "head": jnp.asarray(RANDOM.normal(size=3)),
}
TASKS = imaml.Task(points(), points())
KEY = jax.random.key(0)
PROBLEM = imaml.proximal(loss, 0.5)
TIGHT = {"inner": imaml.GradientDescent(0.3, tolerance=1e-13), "linear": imaml.CG(tolerance=1e-13)}
CHEAP = {"inner": imaml.GradientDescent(0.3, steps=3), "linear": imaml.CG(steps=2)}


def close(left, right, tolerance):
    left, right = ravel_pytree(left)[0], ravel_pytree(right)[0]
    assert float(jnp.linalg.norm(left - right)) <= tolerance * float(jnp.linalg.norm(right))


PROBLEMS = {
    "all": PROBLEM,
    "learned": imaml.proximal(loss, imaml.learned(0.5)),
    "head": imaml.proximal(loss, 0.5, adapt="head"),
    "learned head": imaml.proximal(loss, imaml.learned(0.5, per="all"), adapt="head"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_the_gradient_of_the_mean_over_tasks(name):
    """The explicit route and the differentiation rule: two programs, one number (both to 1e-13)."""
    problem = PROBLEMS[name]
    theta = problem.parameters(MEAN)
    method = imaml.IMAML(problem, query_loss, **TIGHT)

    def mean(theta):
        def one(task):
            phi = imaml.solve(
                problem, theta, task.support, inner=TIGHT["inner"], rule=imaml.implicit(TIGHT["linear"])
            )
            return query_loss(phi, theta, task.query)

        return jnp.mean(jax.vmap(one)(TASKS))

    (gradient, metrics), (value, expected) = jax.jit(
        lambda t: (method(t, TASKS, KEY), jax.value_and_grad(mean)(t))
    )(theta)
    assert jax.tree.structure(gradient) == jax.tree.structure(theta)
    close(gradient, expected, 1e-10)
    np.testing.assert_allclose(jnp.mean(metrics.loss), value, rtol=1e-12)


def test_it_is_algorithm_2_with_the_steps_asked_for():
    """By hand, task by task: 3 gradient steps, then 2 CG steps on (H + s I) u = v; the answer is s u."""
    gradient, metrics = jax.jit(imaml.IMAML(PROBLEM, query_loss, **CHEAP))(MEAN, TASKS, KEY)
    theta, unravel = ravel_pytree(MEAN)
    total = 0
    for i in range(COUNT):
        support, query = jax.tree.map(lambda leaf: leaf[i], TASKS)  # noqa: B023
        slope = jax.jit(jax.grad(lambda v: loss(unravel(v), support)))  # noqa: B023
        phi = theta
        for _ in range(3):
            phi = phi - 0.3 * (slope(phi) + 0.5 * (phi - theta))
        matrix = np.asarray(jax.jacfwd(slope)(phi)) + 0.5 * np.eye(theta.size)
        right = np.asarray(ravel_pytree(jax.grad(loss)(unravel(phi), query))[0])
        u, r = np.zeros_like(right), right
        p = r
        for _ in range(2):
            image = matrix @ p
            length = r @ r / (p @ image)
            u, following = u + length * p, r - length * image
            p, r = following + (following @ following) / (r @ r) * p, following
        total = total + 0.5 * u + 0.02 * theta
        np.testing.assert_allclose(
            metrics.inner_residual[i], np.linalg.norm(slope(phi) + 0.5 * (phi - theta))
        )
        np.testing.assert_allclose(metrics.linear_residual[i], np.linalg.norm(r) / np.linalg.norm(right))
    close(ravel_pytree(gradient)[0], total / COUNT, 1e-12)


def test_metrics_are_told_task_by_task():
    measure = lambda phi, theta, batch: {"double": 2 * loss(phi, batch)}  # noqa: E731
    _, metrics = jax.jit(imaml.IMAML(PROBLEM, lambda p, t, b: loss(p, b), **CHEAP, measure=measure))(
        MEAN, TASKS
    )
    assert all(leaf.shape == (COUNT,) for leaf in jax.tree.leaves(metrics))
    assert metrics.inner_steps.tolist() == [3] * COUNT
    assert metrics.linear_steps.tolist() == [2] * COUNT
    assert metrics.used.all()
    assert not metrics.negative_curvature.any()
    assert str(metrics.linear_status) == f"{COUNT} x STEPS_DONE"
    np.testing.assert_allclose(metrics.measures["double"], 2 * metrics.loss)


# The third task's support has a NaN.
SPOILT = TASKS._replace(support=(TASKS.support[0].at[2, 1, 0].set(jnp.nan), TASKS.support[1]))
GOOD = jax.tree.map(lambda leaf: jnp.delete(leaf, 2, axis=0), TASKS)


def test_a_failed_task_is_left_out_and_the_mean_is_over_the_others():
    method = imaml.IMAML(PROBLEM, query_loss, **CHEAP, policy="skip")
    gradient, metrics = jax.jit(method)(MEAN, SPOILT, KEY)
    others, _ = jax.jit(method)(MEAN, GOOD, KEY)
    assert metrics.used.tolist() == [True, True, False, True]
    close(gradient, others, 1e-14)  # the same numbers, summed in the same order
    method.check(metrics)  # "skip": nothing said
    told = r"1 of 4 tasks failed.*excluded from .*\(tasks \[2\]; worst ending NOT_FINITE\).*lower the"
    with pytest.warns(RuntimeWarning, match=told):
        dataclasses.replace(method, policy="warn").check(metrics)
    with pytest.raises(imaml.NumericalError, match=told):
        dataclasses.replace(method, policy="raise").check(metrics)


@pytest.mark.slow
def test_without_jit_the_policy_acts_at_once():
    with pytest.raises(imaml.NumericalError, match="1 of 4 tasks"):
        imaml.IMAML(PROBLEM, query_loss, **CHEAP, policy="raise")(MEAN, SPOILT, KEY)


@pytest.mark.parametrize("policy", ["raise", "warn", "skip"])
def test_where_all_tasks_failed_there_is_no_gradient_under_any_policy(policy):
    method = imaml.IMAML(PROBLEM, query_loss, **CHEAP, policy=policy)
    used = jnp.zeros(COUNT, bool)
    codes = imaml.Status(jnp.full(COUNT, int(imaml.Ending.NOT_FINITE)))
    blank = jnp.zeros(COUNT)
    metrics = imaml.Metrics(*[blank] * 6, used, blank, None, codes, codes, used, {})
    with pytest.raises(imaml.NumericalError, match="4 of 4 tasks failed"):
        method.check(metrics)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("devices", [1, 2])
def test_where_all_tasks_failed_the_gradient_is_nan_and_not_zero(devices, chunk):
    """Zero is what a solved meta-problem has."""
    if devices > len(jax.devices()):
        pytest.skip("needs two devices; conftest asks for them")
    mesh = None if devices == 1 else Mesh(np.array(jax.devices()[:2]), ("tasks",))
    method = imaml.IMAML(PROBLEM, query_loss, **CHEAP, chunk=chunk, mesh=mesh)
    gradient, metrics = jax.jit(method)(MEAN, jax.tree.map(lambda leaf: leaf * jnp.nan, TASKS))
    assert not metrics.used.any()
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_where_all_tasks_are_indefinite_the_gradient_is_nan_and_not_zero():
    """Every solve is finite; CG meets negative curvature at once, and has nothing to give."""
    hill = lambda phi, batch: -0.5 * jnp.sum((phi - batch) ** 2)  # noqa: E731
    inner, linear = imaml.GradientDescent(0.1, steps=2), imaml.CG(steps=2)
    method = imaml.IMAML(
        imaml.proximal(hill, 0.5), lambda phi, theta, batch: -hill(phi, batch), inner=inner, linear=linear
    )
    gradient, metrics = jax.jit(method)(jnp.zeros(1), imaml.Task(jnp.ones((2, 1)), jnp.ones((2, 1))))
    assert metrics.negative_curvature.all()
    assert jnp.isnan(gradient).all()
    with pytest.raises(imaml.NumericalError, match="2 of 2 tasks failed"):
        method.check(metrics)


def test_every_way_to_fail_leaves_the_task_out():
    """A diverged (finite) inner solve, negative curvature in the first direction, a NaN in the query set."""

    def bend(phi, batch):
        return 0.5 * jnp.sum(batch * (phi - 1.0) ** 2)

    # Three steps of rate 3 scale the error by (1 - 3 (c + 0.5))^3: -0.5 for c = 0.1, -43 for 1, 2 for -0.6.
    method = imaml.IMAML(
        imaml.proximal(bend, 0.5),
        lambda p, t, b: jnp.sum((p - b) ** 2) + jnp.sum(t),
        inner=imaml.GradientDescent(3.0, steps=3),
        linear=imaml.CG(steps=2),
        policy="skip",
    )
    run = jax.jit(method)
    theta, curvature = jnp.zeros(2), jnp.array([0.1, 1.0, -0.6, 0.1])
    gradient, metrics = run(theta, imaml.Task(curvature, jnp.array([0.0, 0.0, 0.0, jnp.nan])))
    assert metrics.used.tolist() == [True, False, False, False]
    assert metrics.inner_status.code[1] == imaml.Ending.DIVERGED
    assert metrics.negative_curvature.tolist()[:3] == [False, False, True]
    assert np.isfinite(metrics.loss[:3]).all()
    alone, _ = run(theta, imaml.Task(jnp.full(4, 0.1), jnp.zeros(4)))
    close(gradient, alone, 1e-14)
    with pytest.warns(RuntimeWarning, match="3 of 4 tasks"):
        dataclasses.replace(method, policy="warn").check(metrics)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_nothing(chunk):
    """3 does not divide the 4 tasks."""
    whole, metrics = on_one_device()
    gradient, chunked = jax.jit(imaml.IMAML(PROBLEM, query_loss, **CHEAP, chunk=chunk))(MEAN, TASKS, KEY)
    close(gradient, whole, 1e-13)
    for a, b in zip(jax.tree.leaves(metrics), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


KEPT = []


def on_one_device():
    """One device, all tasks at once; compiled once for the tests that compare with it."""
    if not KEPT:
        KEPT.append(jax.jit(imaml.IMAML(PROBLEM, query_loss, **CHEAP))(MEAN, TASKS, KEY))
    return KEPT[0]


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices; conftest asks for them")
def test_two_devices_give_the_gradient_of_one_with_one_all_reduce():
    """With check_vma=True the inner gradients would be summed over devices: twice too large, no error."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("tasks",), axis_types=(AxisType.Auto,))
    tasks = jax.device_put(TASKS, NamedSharding(mesh, PartitionSpec("tasks")))
    theta = jax.device_put(MEAN, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(imaml.IMAML(PROBLEM, query_loss, **CHEAP, mesh=mesh))
    compiled = step.lower(theta, tasks, KEY).compile()
    gradient, metrics = compiled(theta, tasks, KEY)
    whole, expected = on_one_device()
    close(jax.device_get(gradient), jax.device_get(whole), 1e-12)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-12)
    assert len(re.findall(r"= \S+ all-reduce(?:-start)?\(", compiled.as_text())) == 1
    assert not re.findall(r"all-gather|all-to-all|collective-permute", compiled.as_text())
    with pytest.raises(imaml.ConfigError, match="expected a multiple of the 2 devices, got 3"):
        imaml.IMAML(PROBLEM, query_loss, **CHEAP, mesh=mesh)(MEAN, GOOD, KEY)


def test_a_failed_task_on_one_of_two_devices_is_left_out_of_the_whole_mean():
    mesh = Mesh(np.array(jax.devices()[:2]), ("tasks",), axis_types=(AxisType.Auto,))
    method = imaml.IMAML(PROBLEM, query_loss, **CHEAP, mesh=mesh, policy="skip")
    gradient, _ = jax.jit(method)(MEAN, SPOILT)  # and without a key
    alone, _ = jax.jit(imaml.IMAML(PROBLEM, query_loss, **CHEAP))(MEAN, GOOD)
    close(jax.device_get(gradient), jax.device_get(alone), 1e-12)


def test_the_second_step_compiles_nothing():
    traced = []

    def counted(phi, theta, batch):
        traced.append(1)
        return query_loss(phi, theta, batch)

    step = jax.jit(imaml.IMAML(PROBLEM, counted, **CHEAP))
    gradient, _ = step(MEAN, TASKS, KEY)
    first = len(traced)
    theta = jax.tree.map(lambda t, g: t - 0.1 * g, MEAN, gradient)
    step(theta, imaml.Task(points(), points()), jax.random.key(1))
    assert len(traced) == first


@pytest.mark.slow
def test_memory_does_not_grow_with_the_inner_steps():
    """Temporary bytes of the compiled step with 1,024 inner steps are at most 1.01 times those with 4."""

    def temporary(steps):
        method = imaml.IMAML(
            PROBLEM, query_loss, inner=imaml.GradientDescent(0.1, steps=steps), linear=imaml.CG(5)
        )
        return jax.jit(method).lower(MEAN, TASKS, KEY).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(1024)
    assert few > 0
    assert many <= 1.01 * few


def test_memory_grows_by_metrics_alone_with_tasks_taken_one_after_another():
    """Gradients of 1,000 numbers; 28 tasks more take less than one gradient's bytes a task in temporaries."""
    mean, problem = jnp.zeros(1000), imaml.proximal(lambda phi, batch: 0.5 * jnp.sum((phi - batch) ** 2), 1.0)
    method = imaml.IMAML(
        problem, lambda phi, theta, batch: 0.5 * jnp.sum((phi - batch) ** 2), **CHEAP, chunk=1
    )

    def temporary(count):
        tasks = imaml.Task(jnp.ones((count, 1)), jnp.ones((count, 1)))
        return jax.jit(method).lower(mean, tasks, KEY).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(32)
    assert few > 0
    assert many - few < 0.1 * 28 * mean.nbytes


def test_a_large_tree_is_one_vector_in_the_order_of_its_leaves():
    """Written leaf by leaf within jit, it is what concatenation gives; so are its tangents and cotangents."""
    sizes = {"a": (3,), "b": (700, 400), "c": (5, 7)}
    made = {name: jnp.asarray(RANDOM.normal(size=shape)) for name, shape in sizes.items()}
    weights = jnp.asarray(RANDOM.normal(size=ravel_pytree(made)[0].size))
    assert weights.size >= tree.LARGE
    ravel = lambda leaves: tree.ravel(leaves)[0]  # noqa: E731
    text = jax.jit(ravel).lower(made).as_text()
    assert "dynamic_update_slice" in text
    assert "concatenate" not in text
    for found in (jax.jit(ravel)(made), jax.jit(lambda t: jax.jvp(ravel, (t,), (t,))[1])(made)):
        np.testing.assert_array_equal(found, ravel_pytree(made)[0])
    pulled = jax.jit(jax.grad(lambda leaves: weights @ ravel(leaves)))(made)
    np.testing.assert_array_equal(ravel_pytree(pulled)[0], weights)
    back = jax.jit(lambda leaves: tree.ravel(leaves)[1](2 * ravel(leaves)))(made)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), back, made)


@pytest.mark.usefixtures("strict_dtypes")
def test_it_promotes_no_dtype():
    single = lambda leaves: jax.tree.map(lambda leaf: leaf.astype("float32"), leaves)  # noqa: E731
    method = imaml.IMAML(PROBLEM, loss_alone, **CHEAP)
    gradient, metrics = jax.eval_shape(method, single(MEAN), single(TASKS), KEY)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
    assert metrics.linear_residual.dtype == metrics.inner_residual.dtype == metrics.loss.dtype == "float32"


def loss_alone(phi, theta, batch):
    return loss(phi, batch)


SINGLE = """
import jax, jax.numpy as jnp, imaml
loss = lambda phi, batch: jnp.mean((jnp.tanh(batch[0] @ phi["a"]) @ phi["b"] - batch[1]) ** 2)
problem = imaml.proximal(loss, imaml.learned(0.5))
theta = problem.parameters({"a": jnp.ones((2, 3)), "b": jnp.ones(3)})
batch = (jax.random.normal(jax.random.key(0), (4, 6, 2)), jnp.ones((4, 6)))
for linear in (imaml.CG(steps=5), imaml.BiCGStab(), imaml.Dense()):
    inner = imaml.GradientDescent(0.1, steps=100)
    method = imaml.IMAML(problem, lambda p, t, b: loss(p, b), inner=inner, linear=linear)
    gradient, metrics = jax.jit(method)(theta, imaml.Task(batch, batch), jax.random.key(0))
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
    assert flat.dtype == jnp.float32 and metrics.used.all(), linear
    print(*(float(x) for x in flat))
"""


@pytest.mark.slow
def test_float32_in_a_process_of_its_own():
    """Without x64, as users run it: three solvers, one gradient, to some hundred times float32's rounding."""
    run = subprocess.run([sys.executable, "-c", SINGLE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = np.array([[float(x) for x in line.split()] for line in run.stdout.splitlines()])
    assert rows.shape == (3, 11)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[2], rows.shape), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "ignore"}, "policy: expected one of 'raise', 'warn', 'skip', got 'ignore'"),
        ({"chunk": 0}, "chunk: expected a whole number.*got 0"),
        ({"linear": None}, "linear: expected a linear solver.*got None"),
        ({"inner": 3}, "inner: expected an inner solver .*, got 3"),
        ({"problem": loss}, r"problem: expected one such as proximal\(loss, strength\)"),
        ({"problem": imaml.plain(loss)}, "expected a problem whose solution depends on theta"),
        (
            {"problem": imaml.fixed_point(lambda phi, theta, batch: phi)},
            "CG: expected a system of structure spd, got 'general'",
        ),
    ],
)
def test_recipes_refuse_when_made(change, message):
    with pytest.raises(imaml.ConfigError, match=message):
        imaml.IMAML(**({"problem": PROBLEM, "query_loss": query_loss, **CHEAP} | change))


def test_other_meshes_and_leading_axes_are_refused():
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))
    with pytest.raises(
        imaml.ConfigError, match=r"mesh: expected one axis, named 'tasks', got \('devices',\)"
    ):
        imaml.IMAML(PROBLEM, query_loss, **CHEAP, mesh=mesh)
    method = imaml.IMAML(PROBLEM, query_loss, **CHEAP)
    for tasks in (
        imaml.Task(points(3), points(4)),
        imaml.Task(jnp.ones(()), jnp.ones(())),
        imaml.Task((), ()),
    ):
        with pytest.raises(imaml.ConfigError, match="expected the same leading axis, of tasks"):
            method(MEAN, tasks, KEY)
