"""Run work in chunks of bounded size, halved when memory runs out; draw seeded noise."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Pixels in one pass. Measured with ResNet-18 on two cores: an image of 224 x 224 takes a sixth less time in a pass of 8
# than in a pass of 32, where features exceed the cache. A GPU needs more.
PIXELS = {"cpu": 8 * 224 * 224}
PIXELS_ELSEWHERE = 64 * 224 * 224


def in_chunks(run: Callable[[slice], None], total: int, chunk_size: int | None, images: Tensor) -> None:
    """Call `run` with slices that cover `total` rows; when memory runs out the chunk is halved once.

    `run` must write its result last, so that a call that failed can be repeated. The default `chunk_size` depends on
    the device and the size of `images`.
    """
    if chunk_size is None:
        pixels = PIXELS.get(images.device.type, PIXELS_ELSEWHERE)
        chunk_size = max(1, pixels // math.prod(images.shape[2:]))
        chunk_size = math.ceil(total / math.ceil(total / chunk_size)) if total else 1  # all about equally large
    if chunk_size < 1:
        raise ValueError(f"expected chunk_size of at least 1, got {chunk_size}.")
    start, halved = 0, False
    while start < total:
        chunk = slice(start, min(start + chunk_size, total))
        problem = _out_of_memory(run, chunk)
        if problem is None:
            start = chunk.stop
        elif halved or chunk.stop - start == 1:
            raise RuntimeError(
                f"out of memory with {chunk.stop - start} images in a pass, also after halving; pass a smaller "
                f"chunk_size or explain fewer images at once. The error: {problem}"
            )
        else:
            chunk_size, halved = (chunk.stop - start) // 2, True
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _out_of_memory(run: Callable[[slice], None], chunk: slice) -> str | None:
    # Return the message alone: the traceback of the error would keep the tensors of the failed chunk alive.
    try:
        run(chunk)
    except torch.OutOfMemoryError as error:
        return str(error)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the error text of torch on a CPU
            raise
        return str(error)
    return None


def seeded_noise(seed: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Draw standard normal noise that depends on the seed and the shape alone, on the device of `like`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(like)
