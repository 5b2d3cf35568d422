"""Check that the number of waits for the device does not depend on the number of its passes."""

import dataclasses

import pytest
import torch
from support.attributions import METHODS, toy, toy_images
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


@pytest.mark.parametrize(("name", "most"), [("gradcam", 1), ("gradient", 1), ("integratedgradients", 1), ("rise", 1)])
def test_classes_are_read_once(name, most):
    assert waits(METHODS[name], torch.tensor([0, 3, 1])) <= most
