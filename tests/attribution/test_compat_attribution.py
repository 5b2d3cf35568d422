"""Private names of torch that we use do what we use them for; a failure here names what a new torch changed."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from interpretable_training.attribution.core import _compat


def test_checkpointing_is_noticed():
    seen = []

    def forward(x):
        seen.append(_compat.saved_tensors_are_watched())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    forward(x)
    checkpoint(forward, x, use_reentrant=False)
    assert seen == [False, True], "torch._C._autograd._top_saved_tensors_default_hooks no longer shows checkpointing"


@pytest.mark.slow  # imports the compiler
def test_compiled_modules_are_unwrapped():
    layer = nn.Linear(2, 2)
    compiled = torch.compile(layer, backend="eager")
    assert _compat.original_of(compiled) is layer, "a compiled module no longer keeps its original as _orig_mod"
    assert _compat.original_of(layer) is None
    assert [name for name, _ in compiled.named_parameters()] == [
        f"{_compat.COMPILED}.weight",
        f"{_compat.COMPILED}.bias",
    ]
    assert _compat.compiler_is_imported()


def test_importing_the_package_imports_no_compiler():
    code = "from interpretable_training.attribution.core import _compat; print(_compat.compiler_is_imported())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_writing_in_place_changes_the_version():
    tensor = torch.zeros(2)
    before = _compat.version_of(tensor)
    tensor.add_(1)
    assert _compat.version_of(tensor) == before + 1, "Tensor._version no longer counts writing in place"


def test_own_tensors_of_a_module_can_be_replaced():
    norm = nn.BatchNorm1d(2)
    assert set(_compat.parameters_in(norm)) == {"weight", "bias"}
    assert set(_compat.buffers_in(norm)) == {"running_mean", "running_var", "num_batches_tracked"}
    weight = nn.Parameter(torch.full((2,), 3.0))
    _compat.parameters_in(norm)["weight"] = weight
    assert norm.weight is weight, "nn.Module no longer reads its parameters from _parameters"
