"""Private names of torch. If one of these tests fails, torch has changed: mend `regularization/_compat.py`."""

import subprocess
import sys

import torch
from torch import nn

from interpretable_training.regularization._compat import (
    call_after_backward,
    is_compiled,
    saved_tensors_are_hooked,
)


def test_call_after_backward_runs_at_the_end_of_the_pass():
    x, order = torch.ones(1, requires_grad=True), []
    y = x * 2
    y.register_hook(lambda g: call_after_backward(lambda: order.append("end")))
    x.register_hook(lambda g: order.append("leaf"))
    y.sum().backward()
    assert order == ["leaf", "end"], "torch changed Variable._execution_engine.queue_callback"


def test_saved_tensors_are_hooked_only_inside_of_hooks():
    assert not saved_tensors_are_hooked(), "torch changed _top_saved_tensors_default_hooks"
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert saved_tensors_are_hooked(), "torch changed _top_saved_tensors_default_hooks"
    assert not saved_tensors_are_hooked()


def test_dynamo_is_loaded_once_something_is_compiled():
    code = "import torch\nfrom interpretable_training.regularization._compat import dynamo_is_loaded\n"
    code += "before = dynamo_is_loaded(); torch.compile(torch.nn.Linear(1, 1)); print(before, dynamo_is_loaded())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"], "torch loads torch._dynamo at another time"


def test_compiled_modules_are_recognized():
    net = nn.Linear(1, 1)
    assert not is_compiled(net)
    assert is_compiled(torch.compile(net, backend="eager")), "torch renamed _orig_mod of compiled modules"
    net.compile(backend="eager")
    assert is_compiled(net), "torch renamed _compiled_call_impl of modules that are compiled in place"
