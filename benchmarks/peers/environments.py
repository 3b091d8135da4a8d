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
    """Packages of one environment. torch: whether it sees the shared PyTorch; bare: installed without what
    they ask for, where that would bring another PyTorch or what the measured part does not use."""

    package: str
    torch: bool = True
    bare: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


ENVIRONMENTS = {
    "torch": Environment("torch", packages=TORCH),
    "torchopt": Environment(
        "torchopt", bare=("torchopt==0.7.3",), packages=("optree", "graphviz", "typing_extensions")
    ),
    "higher": Environment("higher", bare=("higher==0.2.1",)),
    "hypergrad": Environment("hypergrad", bare=("hypergrad==0.0.1",), packages=("rich",)),
    "betty": Environment("betty-ml", bare=("betty-ml==0.1.1",)),
    "statsmodels": Environment("statsmodels", torch=False, packages=("statsmodels==0.14.5",)),
    "jaxopt": Environment("jaxopt", torch=False, packages=("jaxopt==0.8.5", "-e", str(ROOT))),
    "optimistix": Environment("optimistix", torch=False, packages=("optimistix==0.1.0", "-e", str(ROOT))),
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
    print(f"installing {name}", flush=True)
    commands = [[sys.executable, "-m", "venv", FOLDER / name]]
    pip = [python_of(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if environment.bare:
        commands.append([*pip, "--no-deps", *environment.bare])
    if environment.packages:
        pins = [] if environment.torch else ["-c", ROOT / "constraints.txt"]
        commands.append([*pip, *pins, *environment.packages])
    if environment.torch and name != "torch":
        problem = install("torch")
        if problem:
            return problem
    for number, command in enumerate(commands):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
            return "not installed: " + (lines or ended.stderr.splitlines() or ["pip failed"])[-1]
        if number == 0 and environment.torch and name != "torch":
            _share(name)
    done.touch()
    return None


def _share(name):
    """Puts the shared PyTorch on the environment's path, behind its own packages."""
    site = "lib/python{}.{}/site-packages".format(*sys.version_info)
    (FOLDER / name / site / "shared.pth").write_text(f"{FOLDER / 'torch' / site}\n")
