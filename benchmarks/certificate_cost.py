"""What estimates and certificates cost, beside the meta-step that they are of.

    python -m benchmarks.certificate_cost          # -> benchmarks/results/certificate_cost.json

One meta-step of Conv4 on drawn characters (5-way 1-shot, 8 tasks, 16 inner steps, CG 5), float32, on all
devices: the compiled step whose result is the gradient and its metrics without the estimate, with it, and
with certificates of several kinds. Each round times all of them in turn; reported is the median of the
rounds' ratios.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax

import imaml
from benchmarks.machine import describe_machine
from imaml.solution import Certification

RESULT = Path(__file__).parent / "results" / "certificate_cost.json"
TASKS = 8
SHORT = imaml.Certificate(steps=2)
KINDS = {  # curvature, certificate, whether the estimate is among the results
    "no estimate": ("hessian", False, False),
    "estimate": ("hessian", False, True),
    "certificate, Lanczos 40": ("hessian", imaml.Certificate(), True),
    "Gauss-Newton, no estimate": ("gauss-newton", False, False),
    "Gauss-Newton, estimate": ("gauss-newton", False, True),
    "Gauss-Newton, certificate of 2 steps": ("gauss-newton", SHORT, True),
    "Gauss-Newton, certificate": ("gauss-newton", imaml.Certificate(), True),
}


def main():
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    from imaml.startup import use_all_cores

    use_all_cores()
    from imaml.training import devices_mesh

    domain = imaml.characters(queries=5, normalisation="transductive")
    keys = jax.random.split(jax.random.key(0), TASKS)
    tasks = jax.jit(lambda: jax.vmap(lambda k: domain.sample(k, "train"))(keys))()
    theta = domain.init(jax.random.key(1))
    steps, times, said = {}, {name: [] for name in KINDS}, {}
    for name, (curvature, certificate, estimate) in KINDS.items():
        method = imaml.IMAML(
            domain.problem(0.5, curvature=curvature),
            domain.query_loss,
            inner=imaml.GradientDescent(0.2, steps=16),
            linear=imaml.CG(steps=5),
            certify=certificate,
            chunk=1,
            mesh=devices_mesh(TASKS),
        )

        def step(theta, tasks, key, method=method, estimate=estimate):
            gradient, metrics = method(theta, tasks, key)
            return gradient, metrics if estimate else metrics._replace(error_estimate=None)

        steps[name] = jax.jit(step)
        _, metrics = jax.block_until_ready(steps[name](theta, tasks, jax.random.key(2)))
        said[name] = metrics
    for round_ in range(arguments.rounds):
        for name in sorted(KINDS, key=lambda name, r=round_: (list(KINDS).index(name) * 5 + r) % len(KINDS)):
            began = time.perf_counter()
            jax.block_until_ready(steps[name](theta, tasks, jax.random.key(2)))
            times[name].append(1e3 * (time.perf_counter() - began))
    rows = []
    for name, (curvature, certificate, _) in KINDS.items():
        base = "no estimate" if curvature == "hessian" else "Gauss-Newton, no estimate"
        ratios = [a / b - 1 for a, b in zip(times[name], times[base], strict=True)]
        row = {"what": name, "ms_median": statistics.median(times[name]), "more_than": base}
        row |= {"more_median": statistics.median(ratios), "more_all": sorted(ratios)}
        if certificate:
            codes = said[name].linear_status.certificate.tolist()
            row["tasks"] = {code.name: codes.count(int(code)) for code in Certification if int(code) in codes}
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "more_all"}), flush=True)
    command = "python -m benchmarks.certificate_cost"
    result = {"command": command, "machine": describe_machine(), "rounds": arguments.rounds, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
