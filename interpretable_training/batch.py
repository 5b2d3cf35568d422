"""What a loader returns, taken apart, so that a mistake ends in a sentence."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def images_and_target(batch: Any) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and target of a pair or of a dict, whose other entries are ignored."""
    if isinstance(batch, Mapping):
        found: Any = (batch.get("image"), batch.get("target"))
    else:
        found = batch
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(x, Tensor) for x in found):
        return found[0], found[1]
    raise TypeError(
        "expected a batch (images, target) or a dict with the tensors 'image' and 'target', "
        f"got {describe(batch)}; change what the data set returns or its collate_fn."
    )


def describe(batch: Any) -> str:
    """A batch in words: its type and the types of its entries."""
    if isinstance(batch, Mapping):
        return f"a dict with { ({name: type(value).__name__ for name, value in batch.items()}) }"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {[type(value).__name__ for value in batch]}"
    return f"a {type(batch).__name__}"
