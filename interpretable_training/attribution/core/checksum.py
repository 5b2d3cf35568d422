"""Tell whether weights are the same."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .sharded_parameters import whole


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """One for the exact bits of each tensor; empty for meta tensors, which have none."""
    return {name: _digest([tensor]) for name, tensor in tensors.items()}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """One for all tensors and their names, the same in float32 and bfloat16: it rounds to the latter."""
    rounded = [t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors.values()]
    return hashlib.blake2b("/".join(tensors).encode() + _digest(rounded).encode(), digest_size=16).hexdigest()


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in map(whole, tensors):
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
