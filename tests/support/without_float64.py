"""A pretended device without float64, as MPS is: its tensors hold real values of the CPU.

As on a real device, functions of tensors on both raise, and so do random numbers from a generator of the CPU.
"""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # of all types without memory of its own the one that torch has everywhere
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnDevice(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        if inner.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        layout = {"strides": inner.stride(), "dtype": inner.dtype, "device": DEVICE}
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout)
        tensor.inner = inner
        return tensor

    is_meta = False  # its values are real

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """While active, tensors may be made on the device."""

    def __enter__(self):
        self.constants = Constants()
        self.constants.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.constants.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Constants(TorchFunctionMode):
    """Put numbers on the device with their values, of which torch makes empty tensors on this type of device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            kwargs = {"dtype": args[0].dtype, "device": DEVICE, **kwargs}
            args, func = args[1:], torch.tensor
        device = kwargs.get("device")
        made = func in (torch.tensor, torch.as_tensor) and device is not None
        if not made or torch.device(device).type != DEVICE.type or isinstance(args[0], torch.Tensor):
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


def inner(tensor):
    return tensor.inner if isinstance(tensor, OnDevice) else tensor


def refuse_mixed(func, args, leaves):
    """Raise what torch raises for tensors of two devices; numbers and indices may be on the CPU."""
    others = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice)]
    if "index" in func.__name__ and isinstance(args[0], OnDevice):
        others = [t for t in args[2:3] if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice)]
    if any(t.ndim for t in others):
        raise RuntimeError(f"Expected all tensors to be on the same device, got {DEVICE} and cpu ({func})")


def run(func, args, kwargs):
    leaves = tree_leaves((args, kwargs))
    wanted, ours = kwargs.get("device"), any(isinstance(t, OnDevice) for t in leaves)
    there = torch.device(wanted).type == DEVICE.type if wanted is not None else ours
    there = isinstance(args[0], OnDevice) if func is MOVES[1] else there
    if ours and func not in MOVES:
        refuse_mixed(func, args, leaves)
    if there and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu' ({func})")
    if wanted is not None and there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if not there:
        return out
    out = tree_map(lambda t: OnDevice(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if ours else out


def to_device(module):
    """The module with its tensors on the device."""
    for child in module.modules():
        for holder in (child._parameters, child._buffers):
            for name, tensor in holder.items():
                if tensor is not None:
                    moved = OnDevice(tensor.detach())
                    holder[name] = nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved
    return module
