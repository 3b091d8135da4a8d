"""Loggers: what they write, with stand-ins for the libraries that they write with."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import imaml
from helpers.marks import slow_after_first


class Stand:
    """A stand-in for each library: keeps what is written as (name, value, step)."""

    def __init__(self):
        self.written, self.run = [], None

    def SummaryWriter(self, folder):
        self.folder = folder
        return SimpleNamespace(add_scalar=lambda *one: self.written.append(one), flush=lambda: None)

    def init(self):
        return SimpleNamespace(log=self.log_metrics)

    def log_metrics(self, values, step):
        self.written += [(name, value, step) for name, value in values.items()]


LOGGERS = {
    "tensorboardX": lambda: imaml.loggers.TensorBoard("logs"),
    "wandb": imaml.loggers.WandB,
    "mlflow": imaml.loggers.MLflow,
}


@pytest.mark.parametrize("library", slow_after_first(LOGGERS))
def test_a_logger_writes_logged_steps_and_validations(library, monkeypatch, ranks_mixed):
    stand = Stand()
    monkeypatch.setitem(sys.modules, library, stand)
    log = LOGGERS[library]()
    x = np.arange(80.0) % 7
    tasks = imaml.Tasks.from_arrays(x, x % 3, np.repeat(np.arange(10), 8))
    options = {"shots": 4, "strength": 1.0, "steps": 20, "progress": False}
    imaml.fit(tasks, "linear", **options, on_step=log, on_validation=log)
    found = {name: [step for each, _, step in stand.written if each == name] for name, _, _ in stand.written}
    assert found["train/loss"] == found["train/gradient_norm"] == [10, 20]
    assert found["validation/scores/rmse"] == list(range(0, 21, 4))
    assert all(isinstance(value, float) for _, value, _ in stand.written)
    assert not any("theta" in name for name in found)


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (
            "tensorboardX",
            r'loggers.TensorBoard: expected tensorboardX or .*, got none .* "imaml\[tensorboard',
        ),
        ("wandb", r"loggers.WandB: expected wandb, got none installed\. Hint: pip install wandb\."),
        ("mlflow", r"loggers.MLflow: expected mlflow, got none installed\. Hint: pip install mlflow\."),
    ],
)
def test_a_library_that_is_missing_is_named(library, says, monkeypatch):
    for name in (library, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(imaml.ConfigError, match=says):
        LOGGERS[library]()


@pytest.mark.parametrize("name", ["logger", "callbacks"])
def test_training_says_how_to_log(name):
    domain = imaml.sinusoid()
    method = imaml.config.Method(strength=1.0)
    with pytest.raises(imaml.ConfigError, match=r"train: option: .* on_step=.*imaml\.loggers\.TensorBoard"):
        imaml.train(domain, method, steps=1, **{name: print})
