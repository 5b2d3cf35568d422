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


def test_at_end_of_backward_runs_at_the_end_of_the_pass():
    x, order = torch.ones(1, requires_grad=True), []
    y = x * 2
    y.register_hook(lambda g: _compat.at_end_of_backward(lambda: order.append("end")))
    x.register_hook(lambda g: order.append("leaf"))
    y.sum().backward()
    assert order == ["leaf", "end"], "torch changed Variable._execution_engine.queue_callback"


def test_saved_tensors_are_watched_only_inside_of_hooks():
    assert not _compat.saved_tensors_are_watched(), "torch changed _top_saved_tensors_default_hooks"
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert _compat.saved_tensors_are_watched(), "torch changed _top_saved_tensors_default_hooks"
    assert not _compat.saved_tensors_are_watched()


@pytest.mark.slow
def test_compiler_is_imported_once_something_is_compiled():
    code = "import torch\nfrom interpretable_training.attribution.core._compat import compiler_is_imported\n"
    code += (
        "before = compiler_is_imported(); torch.compile(torch.nn.Linear(1, 1)); print(before, compiler_is_imported())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"], "torch loads torch._dynamo at another time"


def test_compiled_modules_are_recognized():
    net = nn.Linear(1, 1)
    assert not _compat.is_compiled(net)
    assert _compat.is_compiled(torch.compile(net, backend="eager")), "torch renamed _orig_mod of compiled modules"
    net.compile(backend="eager")
    assert _compat.is_compiled(net), "torch renamed _compiled_call_impl of modules that are compiled in place"


def test_hooks_are_found():
    layer = nn.Linear(2, 2)
    assert not _compat.hooks_of(layer)
    assert not _compat.global_hooks()
    handles = [layer.register_forward_hook(lambda *_: None)]
    assert _compat.hooks_of(layer), "nn.Module no longer keeps forward hooks in _forward_hooks"
    handles += [nn.modules.module.register_module_forward_hook(lambda *_: None)]
    assert _compat.global_hooks(), "torch no longer keeps hooks of all modules in _global_forward_hooks"
    for handle in handles:
        handle.remove()


@pytest.mark.skipif(not _compat.packs_weights(), reason="this build of torch packs no weights")
def test_packed_convolution_equals_the_ordinary_one():
    conv, x = nn.Conv2d(4, 6, 3, 2, 1, groups=2), torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last)
    places = [1, 1], [2, 2], [1, 1]
    with torch.no_grad():
        packed = _compat.pack_weight(conv.weight, *places, 2, x.shape)
        y = _compat.packed_convolution(x, packed, conv.bias, *places, 2)
        torch.testing.assert_close(y, conv(x), msg="torch.ops.mkldnn._convolution_pointwise changed")


def test_weights_are_frozen_inside_of_the_context():
    config = pytest.importorskip("torch._inductor.config")
    before = config.freezing, config.triton.cudagraphs
    with _compat.frozen_weights(graphs=True):
        assert (config.freezing, config.triton.cudagraphs) == (True, True)
    assert (config.freezing, config.triton.cudagraphs) == before
