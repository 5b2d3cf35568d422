import gc

import pytest
import torch

gc.disable()  # thousands of tests are collected, and live until the end


def pytest_collection_finish():
    """Collect garbage again."""
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors gain little from threads, which on a busy machine wait for each other ten times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def frozen_imports():
    """Garbage collection, which tests of memory ask for, need not visit what imports have made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def figures():
    """Ask for figures that are really drawn."""


@pytest.fixture(autouse=True)
def blank_figures(request, monkeypatch):
    """Leave figures of matplotlib blank: most tests train and never look at the curves, half a second each."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)
