"""Old module names, which can be imported for one release."""

import importlib
import sys

import pytest

from imaml.core.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_is_found_under_its_old_name_with_a_warning(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}"):
        assert importlib.import_module(old) is importlib.import_module(MOVED[old])


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("imaml.config", "Config Method NewTask Optimiser Training load_config override overrides"),
        ("imaml.domains.fewshot", "FewShot FewShotRecipe characters image_tasks mini_imagenet"),
        ("imaml.domains.tables", "Rows Tables TablesRecipe tables"),
    ],
)
def test_packages_have_what_the_modules_of_their_names_had(module, names):
    for name in names.split():
        assert hasattr(importlib.import_module(module), name), name
