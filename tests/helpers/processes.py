"""The environment of processes that run examples, in float32 as users see them."""

import os

# Compiling is most of the time of an example. Without optimisations the results are the same. One device is
# what a user's own script has; that training shares tasks among two is tested in the tests' own process.
# Output is buffered, as in a user's shell.
QUICK = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=2", ""),
}
