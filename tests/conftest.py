"""Every test runs in float64, with strict ranks, on two CPU devices, so that sharding is tested."""

import gc
import importlib.metadata
import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same small programs, and the slow ones those of the fast ones.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Compiling is most of the time of these tests. The newer emitters of XLA's CPU compiler take twice as long as
# those before them; a jaxlib that no longer has the flag would stop at it, so it is for the pinned one.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=2",
        "--xla_cpu_use_fusion_emitters=false" * (importlib.metadata.version("jaxlib") == "0.10.2"),
        "--xla_cpu_parallel_codegen_split_count=1",  # splitting is a fifth more work
    ]
)
os.environ.setdefault("PJRT_NPROC", "3")  # a thread more than devices: docs/gotchas.md, 14

import jax
import pytest

gc.set_threshold(200_000, 20, 100)  # traced programs are many objects, and few of them garbage
jax.config.update("jax_enable_x64", True)
# The results are the same.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Tests that wait up to half a minute or more for a process of their own, which no other test can share.
LONG = (
    "test_examples_in_docstrings",
    "test_kills_at_random_moments_change_nothing",
    "test_answers_are_those_recorded",
    "test_counts_of_whole_steps_are_the_committed_ones",
)


def pytest_collection_modifyitems(items):
    """Long tests come first, so that of several workers none waits for another at the end."""
    items.sort(key=lambda item: getattr(item, "originalname", item.name) not in LONG)


SHARED = []  # not empty while steps are shared by the devices


@pytest.fixture(scope="session", autouse=True)
def one_device_for_a_step():
    """Steps that two devices share take longer to compile, so only tests with `two_devices` share them."""
    from imaml.training import experiment, step

    every = step.devices_mesh
    experiment.devices_mesh = step.devices_mesh = lambda tasks: every(tasks) if SHARED else None


@pytest.fixture
def two_devices():
    """The tasks of a step are shared by the devices, as in a user's process."""
    SHARED.append(True)
    yield
    SHARED.clear()


@pytest.fixture
def strict_dtypes():
    """Strict dtype promotion around our own kernels (Optax's Adam does not stand it)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def ranks_mixed():
    """Networks add a bias to every row."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def optimised():
    """Compiles with XLA's optimisations on, for what is sensitive to how sums are ordered."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def interruptible():
    """SIGINT does what it does in a terminal, also where a shell started these tests in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
