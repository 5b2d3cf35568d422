"""Run much work in bounded chunks, seeded noise for it, and what to do when memory runs out."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Pixels in one pass. Measured with ResNet-18 on two cores: 8 images of 224 x 224 at once take a sixth less time each
# than 32, whose features are too large for the cache and the allocator. A GPU wants more.
PIXELS = {"cpu": 8 * 224 * 224}
PIXELS_ELSEWHERE = 64 * 224 * 224


def in_chunks(run: Callable[[slice], None], total: int, chunk_size: int | None, images: Tensor) -> None:
    """Call `run` with slices that cover `total` rows; when memory runs out the chunk is halved once.

    `run` must write its result last, so that a call that failed can be repeated. Without a `chunk_size` it is what
    suits the device and the size of `images`.
    """
    if chunk_size is None:
        pixels = PIXELS.get(images.device.type, PIXELS_ELSEWHERE)
        chunk_size = max(1, pixels // math.prod(images.shape[2:]))
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
    # Returns the message alone: the error's traceback would keep the tensors of the failed chunk alive.
    try:
        run(chunk)
    except torch.OutOfMemoryError as error:
        return str(error)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # what torch says on a CPU
            raise
        return str(error)
    return None


def seeded_noise(seed: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise that depends on the seed and the shape alone, on the device of `like`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(like)
