"""Checksums of tensors: short ones for passports, one per tensor, and one that is the same in half precision."""

import hashlib
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .sharded_parameters import whole


def checksum(*tensors: Tensor) -> str:
    """Return eight hexadecimal digits that change with any bit of the tensors, whatever their shapes."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(_bytes(whole(tensor)), crc)
    return f"{crc:08x}"


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name -> checksum of the exact bits of each tensor; meta tensors, which have no values, share one."""
    return {name: _digest([tensor]) for name, tensor in tensors.items()}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return one checksum of all tensors and their names, rounded to bfloat16: the same in float32 and bfloat16."""
    rounded = [t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors.values()]
    return hashlib.blake2b("/".join(tensors).encode() + _digest(rounded).encode(), digest_size=16).hexdigest()


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in map(whole, tensors):
        if not tensor.is_meta:
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
