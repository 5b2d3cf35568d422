"""Run the examples in docstrings, so that readers can paste them."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import interpretable_training

EXTRAS = {"interpretable_training.sweeps.study"}  # needs an extra
MODULES = sorted(
    results.name
    for results in pkgutil.walk_packages(interpretable_training.__path__, "interpretable_training.")
    if not results.name.endswith("__main__") and results.name not in EXTRAS
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def predefined():
    """Return the names that examples use without defining them."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return {
        "torch": torch,
        "nn": nn,
        "network": nn.Sequential(*layers).eval(),
        "images": torch.randn(4, 3, 16, 16),
        "target": torch.tensor([0, 1, 0, 1]),
        "saliency": torch.rand(4, 16, 16),
    }


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_their_output(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a file
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in FINDER.find(module, extraglobs=None):
        example.globs = {**vars(module), **predefined()}
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
