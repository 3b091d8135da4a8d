"""One meta-step of imaml beside a plain PyTorch loop over the same tasks, as ratios measured in one run.

    python -m benchmarks.speed            # writes benchmarks/results/speed.json

Needs PyTorch besides imaml (`pip install torch`). Both start from the same parameters and tasks and do the
same work (inner gradient descent on the anchored problem, conjugate gradients, mean over tasks); the
difference of their meta-gradients is reported. Each side runs in a process of its own; the two are measured
in turn, round after round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine

WORKS = {
    "conv4-5w1s-8": {"kind": "conv4", "tasks": 8, "steps": 16, "cg": 5, "rate": 0.2, "strength": 0.5},
    "sinusoid-25": {"kind": "sinusoid", "tasks": 25, "steps": 16, "cg": 5, "rate": 0.001, "strength": 10.0},
}
ROUNDS = 15


def prepare(work, folder):
    """Writes the parameters and tasks that both sides use."""
    import jax

    import imaml

    domain = (
        imaml.characters(queries=5, normalisation="transductive")
        if work["kind"] == "conv4"
        else imaml.sinusoid()
    )
    theta = domain.init(jax.random.key(1))
    head = theta.get("head")
    if head is not None:  # a head of zeros would make the first step trivial
        head["kernel"] = 0.05 * jax.random.normal(jax.random.key(2), head["kernel"].shape)
    tasks = jax.vmap(lambda key: domain.sample(key, "train"))(
        jax.random.split(jax.random.key(3), work["tasks"])
    )
    arrays = {f"theta/{layer}/{name}": v for layer, module in theta.items() for name, v in module.items()}
    for part in ("support", "query"):
        batch = getattr(tasks, part)
        arrays[f"{part}/x"], arrays[f"{part}/y"] = batch[0], batch[1]
    np.savez(folder / "work.npz", **{name: np.asarray(v) for name, v in arrays.items()})


def ours(work, folder, threads):
    """A function that runs one meta-step in imaml, and the meta-gradient as one vector in theta's order."""
    import jax

    import imaml

    domain = (
        imaml.characters(queries=5, normalisation="transductive")
        if work["kind"] == "conv4"
        else imaml.sinusoid()
    )
    data = np.load(folder / "work.npz")
    theta = {}
    for name in data.files:
        if name.startswith("theta/"):
            _, layer, leaf = name.split("/")
            theta.setdefault(layer, {})[leaf] = jax.numpy.asarray(data[name])
    from imaml.domains.fewshot import Labelled
    from imaml.domains.regression import Points

    record = Labelled if work["kind"] == "conv4" else Points
    tasks = imaml.Task(
        *(record(*(jax.numpy.asarray(data[f"{part}/{c}"]) for c in "xy")) for part in ("support", "query"))
    )
    from imaml.training import devices_mesh

    method = imaml.IMAML(
        domain.problem(work["strength"]),
        domain.query_loss,
        inner=imaml.GradientDescent(work["rate"], steps=work["steps"]),
        linear=imaml.CG(steps=work["cg"]),
        chunk=1 if work["kind"] == "conv4" else None,
        # A sinusoid's step takes milliseconds, which sharing it between devices would rather lengthen.
        mesh=devices_mesh(work["tasks"]) if threads > 1 and work["kind"] == "conv4" else None,
    )
    step = jax.jit(method)

    def run():
        return jax.block_until_ready(step(theta, tasks, jax.random.key(0)))[0]

    def vector(gradient):
        return np.concatenate(
            [np.asarray(gradient[layer][leaf]).ravel() for layer in theta for leaf in theta[layer]]
        )

    return run, vector, lambda: step._cache_size()


def plain_torch(work, folder, threads):
    """The same in PyTorch as one would write it: eager, a loop over tasks, double backward for H v."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    data = np.load(folder / "work.npz")
    names = [name for name in data.files if name.startswith("theta/")]
    theta = [torch.tensor(data[name]) for name in names]

    def forward(parameters, x):
        p = dict(zip(names, parameters, strict=True))
        if work["kind"] == "sinusoid":
            for layer in (1, 2, 3):
                x = x @ p[f"theta/layer{layer}/kernel"] + p[f"theta/layer{layer}/bias"]
                x = F.relu(x) if layer < 3 else x
            return x
        x = x.permute(0, 3, 1, 2)
        for layer in (1, 2, 3, 4):
            kernel = p[f"theta/conv{layer}/kernel"]
            kernel = kernel.reshape(kernel.shape[0], 3, 3, -1).permute(0, 3, 1, 2)
            x = F.conv2d(x, kernel, stride=2, padding=1)
            x = F.relu(
                F.batch_norm(
                    x, None, None, p[f"theta/conv{layer}/scale"], p[f"theta/conv{layer}/bias"], training=True
                )
            )
        x = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        return x @ p["theta/head/kernel"] + p["theta/head/bias"]

    def loss(parameters, x, y):
        out = forward(parameters, x)
        return 0.5 * (out - y).square().mean() if work["kind"] == "sinusoid" else F.cross_entropy(out, y)

    kind = torch.float32 if work["kind"] == "sinusoid" else torch.int64
    batches = {
        part: (torch.tensor(data[f"{part}/x"]), torch.tensor(data[f"{part}/y"]).to(kind))
        for part in ("support", "query")
    }
    strength = work["strength"]

    def run():
        total = [torch.zeros_like(t) for t in theta]
        for task in range(work["tasks"]):
            sx, sy = (part[task] for part in batches["support"])
            qx, qy = (part[task] for part in batches["query"])
            phi = [t.clone().requires_grad_() for t in theta]
            for _ in range(work["steps"]):
                slope = torch.autograd.grad(loss(phi, sx, sy), phi)
                with torch.no_grad():
                    phi = [
                        (p - work["rate"] * (g + strength * (p - t))).requires_grad_()
                        for p, g, t in zip(phi, slope, theta, strict=True)
                    ]
            b = torch.autograd.grad(loss(phi, qx, qy), phi)
            slope = torch.autograd.grad(loss(phi, sx, sy), phi, create_graph=True)
            x = [torch.zeros_like(t) for t in b]
            r, p = list(b), list(b)
            square = sum((i * i).sum() for i in r)
            for _ in range(work["cg"]):
                product = torch.autograd.grad(slope, phi, p, retain_graph=True)
                image = [h / strength + v for h, v in zip(product, p, strict=True)]
                length = square / sum((i * j).sum() for i, j in zip(p, image, strict=True))
                x = [i + length * j for i, j in zip(x, p, strict=True)]
                r = [i - length * j for i, j in zip(r, image, strict=True)]
                after = sum((i * i).sum() for i in r)
                p = [i + after / square * j for i, j in zip(r, p, strict=True)]
                square = after
            total = [a + u / work["tasks"] for a, u in zip(total, x, strict=True)]
        return total

    return run, lambda gradient: np.concatenate([g.numpy().ravel() for g in gradient]), lambda: 1


def conv4_flops(work, support=5, query=25, ways=5, filters=64):
    """Floating-point operations of the matrix products of one meta-step, two for a multiply-add."""
    places, wide = (14**2, 7**2, 4**2, 2**2), (9, 9 * filters, 9 * filters, 9 * filters)
    layers = [2 * n * k * filters for n, k in zip(places, wide, strict=True)] + [2 * 4 * filters * ways]
    first, rest = layers[0], sum(layers[1:])
    slope = 2 * first + 3 * rest  # forward, and the products for kernels and, but for the first layer, inputs
    product = 2 * first + 6 * rest  # a Hessian-vector product at a linearised slope
    images = support * ((work["steps"] + 1) * slope + work["cg"] * product) + query * slope
    return work["tasks"] * images


def matmul(seconds):
    """Child process: prints the GFLOP/s of 1024 x 1024 float32 matrix products on one thread."""
    import jax

    a = jax.numpy.ones((1024, 1024), jax.numpy.float32)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    print("ready", flush=True)
    sys.stdin.readline()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        jax.block_until_ready([product(a) for _ in range(10)])
        rates.append(10 * 2 * 1024**3 / (time.perf_counter() - began) / 1e9)
    print(float(np.median(rates)), flush=True)


def matmul_rate(threads, seconds=4):
    """GFLOP/s of float32 matrix products with one on each of so many threads at once, all together."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    command = [sys.executable, "-m", "benchmarks.speed", "--matmul", str(seconds)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(threads)
    ]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    total = sum(float(child.stdout.readline()) for child in children)
    for child in children:
        child.communicate()
    return total


def serve(side, name, folder, threads):
    """Child process: measures one step for every line that comes, and prints its seconds."""
    run, vector, compilations = (ours if side == "imaml" else plain_torch)(WORKS[name], folder, threads)
    began = time.perf_counter()
    gradient = run()
    print(json.dumps({"first_call_s": time.perf_counter() - began}), flush=True)
    np.save(folder / f"{side}.npy", vector(gradient))
    run()
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        print(json.dumps({"seconds": times, "compilations": compilations()}), flush=True)


def measure(name, threads):
    """Rows of one work: both sides in turn, ROUNDS times."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(WORKS[name], folder)
        sides = {}
        for side in ("imaml", "torch-loop"):
            flags = f"--xla_force_host_platform_device_count={threads} --xla_cpu_multi_thread_eigen=false"
            environment = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": str(threads)}
            command = [sys.executable, "-m", "benchmarks.speed", "--serve", side, name, made, str(threads)]
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            sides[side] = {"child": child, "first": json.loads(child.stdout.readline()), "seconds": []}
        repeats = {"conv4": {"imaml": 4, "torch-loop": 2}, "sinusoid": {"imaml": 60, "torch-loop": 3}}
        for round_number in range(ROUNDS + 1):
            for side, state in sides.items():
                state["child"].stdin.write(f"{repeats[WORKS[name]['kind']][side]}\n")
                state["child"].stdin.flush()
                answer = json.loads(state["child"].stdout.readline())
                if round_number == 0:  # warms up memory and clocks
                    continue
                state["seconds"].append(float(np.median(answer["seconds"])))
                state["compilations"] = answer["compilations"]
        for state in sides.values():
            state["child"].stdin.close()
            state["child"].wait()
        mine, theirs = (np.load(folder / f"{side}.npy") for side in sides)
        error = float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
    rounds = [t / m for t, m in zip(sides["torch-loop"]["seconds"], sides["imaml"]["seconds"], strict=True)]
    return {
        "work": name,
        **WORKS[name],
        "threads": threads,
        "ratio_median": float(np.median(rounds)),
        "ratio_min": min(rounds),
        "ratio_max": max(rounds),
        "imaml_ms_median": 1e3 * float(np.median(sides["imaml"]["seconds"])),
        "torch_ms_median": 1e3 * float(np.median(sides["torch-loop"]["seconds"])),
        "imaml_first_call_s": sides["imaml"]["first"]["first_call_s"],
        "imaml_compilations": sides["imaml"]["compilations"],
        "difference_of_gradients": error,
    }


def main():
    """Measures every work and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--matmul", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.matmul:
        matmul(arguments.matmul)
        return
    if arguments.serve:
        side, name, folder, threads = arguments.serve
        serve(side, name, Path(folder), int(threads))
        return
    import torch

    threads = len(os.sched_getaffinity(0))
    rates = {"one_thread": matmul_rate(1), "all_threads": matmul_rate(threads)}
    rows = [measure(name, threads) for name in WORKS]
    rows[0]["gflop"] = conv4_flops(WORKS["conv4-5w1s-8"]) / 1e9
    rows[0]["floor_ms"] = 1e3 * rows[0]["gflop"] / rates["all_threads"]
    for row in rows:
        print(
            f"{row['work']:<14} {row['ratio_median']:.1f} times a plain PyTorch loop "
            f"({row['ratio_min']:.1f} to {row['ratio_max']:.1f}); {row['imaml_ms_median']:.1f} ms against "
            f"{row['torch_ms_median']:.1f} ms; difference of gradients {row['difference_of_gradients']:.1e}; "
            f"compilations {row['imaml_compilations']}"
        )
    print(
        f"matrix products: {rates['one_thread']:.0f} GFLOP/s on one thread, {rates['all_threads']:.0f} on "
        f"{threads} at once; floor of the Conv4 step {rows[0]['floor_ms']:.0f} ms"
    )
    result = {
        "command": "python -m benchmarks.speed",
        "machine": {**describe_machine(), "torch": torch.__version__},
        "matmul_gflops": rates,
        "rows": rows,
    }
    Path("benchmarks/results/speed.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
