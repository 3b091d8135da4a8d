"""Each peer's own virtual environment, made by pip under .venv-peers/; PyTorch is installed once for all."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".venv-peers"
TORCH = ("torch==2.13.0", "numpy", "setuptools")


@dataclass(frozen=True)
class Environment:
    """Packages of one environment.

    Args:
        packages: Packages to install.
        bare: Packages to install without their dependencies, where these would bring another PyTorch, or
            what the measured part does not use.
        torch: Whether it sees the shared PyTorch.
    """

    packages: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    torch: bool = True


ENVIRONMENTS = {
    "torch": Environment(TORCH, torch=False),
    "torchopt": Environment(("optree", "graphviz", "typing_extensions"), ("torchopt==0.7.3",)),
    "higher": Environment(bare=("higher==0.2.1",)),
    "hypergrad": Environment(("rich",), ("hypergrad==0.0.1",)),
    "betty-ml": Environment(bare=("betty-ml==0.1.1",)),
    "statsmodels": Environment(("statsmodels==0.14.5",), torch=False),
    "jaxopt": Environment(("jaxopt==0.8.5", "-e", str(ROOT)), torch=False),
    "optimistix": Environment(("optimistix==0.1.0", "-e", str(ROOT)), torch=False),
}


def python_of(name):
    """The interpreter of an environment; "imaml" is the one that runs this."""
    return Path(sys.executable) if name == "imaml" else FOLDER / name / "bin" / "python"


def install(name):
    """Makes an environment unless it is there; None, or what pip said when it failed."""
    done = FOLDER / name / ".installed"
    if done.exists():
        return None
    environment = ENVIRONMENTS[name]
    if environment.torch and (problem := install("torch")):
        return problem
    print(f"installing {name}", flush=True)
    if environment.torch:  # the shared PyTorch, behind the environment's own packages
        site = "lib/python{}.{}/site-packages".format(*sys.version_info)
        (FOLDER / name / site).mkdir(parents=True, exist_ok=True)
        (FOLDER / name / site / "shared.pth").write_text(f"{FOLDER / 'torch' / site}\n")
    commands = [[sys.executable, "-m", "venv", FOLDER / name]]
    pip = [python_of(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = () if environment.torch or name == "torch" else ("-c", ROOT / "constraints.txt")
    wanted = {("--no-deps",): environment.bare, pins: environment.packages}
    commands += [[*pip, *how, *packages] for how, packages in wanted.items() if packages]
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
            return "not installed: " + (lines or ended.stderr.splitlines() or ["pip failed"])[-1]
    done.touch()
    return None
