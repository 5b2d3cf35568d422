"""Check that the number of waits for the device does not depend on the number of its passes."""

import dataclasses

import pytest
import torch
from support.attributions import METHODS, OF_ATTENTION, toy, toy_images
from torch import Tensor
from torch.overrides import TorchFunctionMode

from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.tasks.base import TaskScores
from interpretable_training.tasks.classes import MultiLabel

WAITS = {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.cpu}
WAITS |= {Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.equal, torch.allclose}
IN_CHUNKS = [name for name, method in METHODS.items() if hasattr(method, "chunk_size")]


class Waits(TorchFunctionMode):
    """Count what reads values of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in WAITS
        return func(*args, **(kwargs or {}))


def waits(method, target, n=3):
    net = toy()
    method(net, toy_images(n), target)  # remembers the automatic layer
    with Waits() as counter:
        method(net, toy_images(n), target)
    return counter.count


@pytest.mark.parametrize("target", [1, None, torch.tensor([0, 3, 1])], ids=["int", "pred", "tensor"])
@pytest.mark.parametrize("name", IN_CHUNKS)
def test_waits_do_not_grow_with_chunks(name, target):
    few = waits(dataclasses.replace(METHODS[name], chunk_size=64), target)
    assert waits(dataclasses.replace(METHODS[name], chunk_size=1), target) == few


TWO = ("cam", "ablationcam", "scorecam", "polycam", "occlusion", "expectedgradcamplusplus", "captumattribution")
MOST = {**dict.fromkeys(TWO, 2), "randommap": 7, "hyperexpectedgradcam": 12}  # as docs/architecture.md lists them


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_ATTENTION])
def test_methods_wait_as_often_as_listed(name):
    given, predicted = (waits(METHODS[name], target) for target in (torch.tensor([0, 3, 1]), None))
    assert max(given, predicted) == MOST.get(name, 1)
    assert given == predicted + 1 or name == "hyperexpectedgradcam"


def test_scores_of_a_task_need_no_wait():
    with prepare_model(toy()) as whole, torch.no_grad():
        prepared = whole.bound(None, TaskScores(MultiLabel(), lambda output: output))
        target, output = prepared.resolve(toy_images(3), torch.tensor([0, 3, 1])), prepared.run(toy_images(3))
        with Waits() as counter:
            prepared.score_in(output, target, "prob")
    assert counter.count == 0
