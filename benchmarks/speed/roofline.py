"""Where a meta-step of Conv4 spends its time: the rate of each matrix product in it and alone, and the rest.

    python -m benchmarks run roofline

Two works of the comparison with other libraries. JAX's profiler times what XLA runs, by the names of the
compiled program, where the products' shapes are read. Each shape is then taken alone, on all devices at once.
Shares are of the time of all devices together.
"""

import functools
import gzip
import json
import os
import re
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import benchmark, cores, in_turn, say
from benchmarks.peers import jax_sides
from benchmarks.peers.works import WORKS, make, read
from imaml.training.cost import count_flops, matmul_rate
from imaml.training.step import devices_mesh

STEPS, COPIES, SECONDS = 5, 10, 0.5
LINE = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (\S+) ([\w\-]+)\((.*)$")
KINDS = {  # how the name that XLA gives begins: what it is
    "copy": "copies and patches", "slice": "copies and patches", "pad": "copies and patches",
    "concatenate": "copies and patches", "dynamic": "copies and patches", "bitcast": "copies and patches",
    "psum": "waiting for the other device", "all-reduce": "waiting for the other device",
}  # fmt: skip
OTHER, SUMS = "activations, normalisation, sums of vectors", "sums over images"


def products(text):
    """{name: (m, n, k, contracted axis of left, of right)} of the products of a compiled program."""
    shapes, dots, within, calls = {}, {}, "", []
    for line in text.splitlines():
        opened = re.match(r"^(?:ENTRY )?%([\w.\-]+) \(", line)
        within = opened.group(1) if opened else within
        found = LINE.match(line)
        if not found:
            continue
        name, shape, kind, rest = found.groups()
        shapes[name] = [int(n) for n in re.findall(r"\d+", shape.split("{")[0].partition("[")[2])]
        if kind == "dot":
            left, right = re.findall(r"%([\w.\-]+)", rest)[:2]
            axes = map(int, re.findall(r"[lr]hs_contracting_dims=\{(\d)", rest))
            dots[name] = dots[within] = (name, left, right, *axes)
        elif kind == "fusion":
            calls.append((name, re.search(r"calls=%([\w.\-]+)", rest).group(1)))
    dots |= {name: dots[inner] for name, inner in calls if inner in dots}
    flat = {name: found for name, found in dots.items() if len(shapes[found[0]]) == 2}
    return {name: (*shapes[dot], shapes[left][a], a, b) for name, (dot, left, _, a, b) in flat.items()}


def profiled(step, arguments):
    """{name: (calls, microseconds)} of one step, of all devices."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                jax.block_until_ready(step(*arguments))
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    found = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            found[event["name"]].append(event["dur"])
    return {name: (len(spent) / STEPS, sum(spent) / STEPS) for name, spent in found.items()}


def alone(m, n, k, left, right):
    """GFLOP/s of one product on every device at once."""
    shapes = ((m, k) if left == 1 else (k, m)), ((k, n) if right == 0 else (n, k))
    numbers = (((left,), (right,)), ((), ()))
    take = jax.jit(lambda many, b: [jax.lax.dot_general(a, b, numbers) for a in many])
    placed = [
        jax.device_put(([jnp.ones(shapes[0]) for _ in range(COPIES)], jnp.ones(shapes[1])), device)
        for device in jax.devices()
    ]
    times = in_turn({"": lambda: [take(*each) for each in placed]}, seconds=SECONDS)
    return 2e-6 * m * n * k * COPIES * len(placed) / min(times[""])


def measured(name):
    """The rows of one work."""
    work = WORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        make(work, folder)
        arrays = read(folder)
    theta, (support, query) = jax_sides._inputs(arrays)
    method = jax_sides._method(work, chunk=1, mesh=devices_mesh(work.tasks))
    arguments = (theta, imaml.Task(support, query), jax.random.key(0))
    step = jax.jit(functools.partial(method, estimate=False))
    flops = count_flops(step, *arguments).flops
    compiled = step.lower(*arguments).compile()
    times = in_turn({"": lambda: compiled(*arguments)}, 10)[""]
    shapes, spent = products(compiled.as_text()), profiled(compiled, arguments)
    whole = sum(each for _, each in spent.values())
    by_shape, by_kind = defaultdict(lambda: np.zeros(2)), defaultdict(float)
    for op, (calls, microseconds) in spent.items():
        if op in shapes:
            by_shape[shapes[op]] += (calls, microseconds)
            continue
        kind = KINDS.get(re.split(r"[_.\-]", op)[0], SUMS if op.startswith("ynn") else OTHER)
        kind = KINDS.get(op.split(".")[0], kind)
        by_kind[kind] += microseconds
    rows, bound = [], 0.0
    for shape, (calls, microseconds) in sorted(by_shape.items(), key=lambda item: -item[1][1]):
        m, n, k, *axes = shape
        work_done = 2e-9 * m * n * k * calls
        rate = alone(*shape)
        bound += 1e3 * work_done / rate
        in_step = work_done / (1e-6 * microseconds) * cores()
        row = {"m": m, "n": n, "k": k, "contracted": axes, "calls": calls, "gflop": work_done}
        rows.append(row | {"share": microseconds / whole, "gflops_in_step": in_step, "gflops_alone": rate})
    others = {kind: each / whole for kind, each in sorted(by_kind.items(), key=lambda item: -item[1])}
    found = {"work": name, "title": f"{work.title}, {work.tasks} tasks", "gflop": flops / 1e9}
    found |= {"gflop_of_products_timed": sum(row["gflop"] for row in rows), "ms_min": min(times)}
    found |= {"ms_median": statistics.median(times), "ms_of_products_alone": bound}
    return found | {"ms_profiled": whole / 1e3 / cores(), "products": rows, "others": others}


@benchmark("roofline", quick={"works": ["c-4"]})
def main(run, works=("c-4", "d-2")):
    """Measures each work."""
    flags = "--xla_cpu_multi_thread_eigen=false --xla_cpu_enable_xprof_traceme=true"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={cores()} {flags}"
    rate = matmul_rate() / 1e9
    for name in works:
        found = measured(name)
        at_best = found["gflop"] / rate * 1e3
        found["of_rate"] = at_best / found["ms_median"]
        found["of_rate_of_products_alone"] = at_best / found["ms_of_products_alone"]
        run.add(found, rate_gflops=rate)
        for row in found["products"][:12]:
            say(row)
