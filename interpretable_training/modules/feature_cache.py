"""Features of a frozen backbone on disk, so that each image passes through the backbone once."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.batches.read import Picked
from interpretable_training.models import CAStream

KEY_BYTES = 16
WORDS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class FeatureCache:
    """Memory maps of a backbone's features, one row per image.

    The key of an image is a checksum of its pixels, that of the backbone are checksums of its weights: other images and
    another backbone have other rows, whatever their order. Each process appends to files of its own and reads those of
    all. A row counts once its key is written, after its features: an interrupted run continues with the next image.

    >>> cache = FeatureCache(CAStream(network), "features")
    >>> gap, maps = cache(images)
    >>> [tuple(F.shape) for F in maps] == [tuple(F.shape) for F in cache(images)[1]], cache.misses
    (True, 4)

    Args:
        network: The stream; what it trains is not in the cache.
        folder: Folder of the caches of all backbones.
        dtype: "float16" or "bfloat16".
        rank: Number of this process.
    """

    def __init__(self, network: CAStream, folder: str | Path, dtype: str = "float16", rank: int = 0) -> None:
        if dtype not in WORDS:
            raise ValueError(f"expected cache_features as True, False, 'float16' or 'bfloat16', got {dtype!r}.")
        self.network, self.root, self.dtype, self.rank = network, Path(folder), dtype, rank
        kind = getattr(network, "kind", None)  # of a probe: that of the class token reads no patches
        self.weights = json.dumps([network.checksums(), network.stages, kind], sort_keys=True)
        self.misses = 0  # images that the backbone has seen since the last reset
        self.parts: dict[Path, CachePart] = {}
        self.rows: dict[bytes, tuple[CachePart, int]] = {}
        self.folder: Path | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Return logits of the own pooling and the maps (B, d, h, w) of each stage, as `CAStream.features` does."""
        keys = keys_of(images)
        self._open(images)
        missing = list(dict.fromkeys(i for i, key in enumerate(keys) if key not in self.rows))
        if missing:
            self._add([keys[i] for i in missing], images[missing])
        rows = [self.rows[key] for key in keys]
        columns = [[part.row(column, i) for part, i in rows] for column in range(len(rows[0][0].shapes))]
        gap, *maps = (torch.stack(column).to(images.device) for column in columns)
        return gap if gap.numel() else None, [F.to(learned_dtype(self.network)) for F in maps]

    def reset(self) -> None:
        """Forget the number of misses, and read what other processes have written since."""
        self.misses = 0
        for path in sorted(self.folder.glob("*.json")) if self.folder is not None else []:
            self._read(path)

    def _open(self, images: Tensor) -> None:
        facts = json.dumps([self.weights, self.dtype, str(images.dtype), tuple(images.shape[1:])])
        folder = self.root / hashlib.blake2b(facts.encode(), digest_size=KEY_BYTES).hexdigest()
        if folder != self.folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder, self.parts, self.rows = folder, {}, {}
            self.reset()

    def _read(self, path: Path) -> None:
        part = self.parts.setdefault(path, CachePart(path))
        first = part.length
        for i, key in enumerate(part.reopen(), first):
            self.rows.setdefault(key, (part, i))

    def _add(self, keys: list[bytes], images: Tensor) -> None:
        self.misses += len(images)
        gap, maps = self.network.features(images, whole=True)
        gap = images.new_empty(len(images), 0) if gap is None else gap
        stored = [gap.float(), *(F.to(WORDS[self.dtype]) for F in maps)]
        for name, F, kept in zip(self.network.stages, maps, stored[1:]):
            if F.isfinite().all() and not kept.isfinite().all():
                raise ValueError(
                    f"expected features within the range of {self.dtype}, got {F.abs().max():g} from stage {name!r}; "
                    "pass cache_features='bfloat16'."
                )
        assert self.folder is not None
        path = self.folder / f"{self.rank}.json"
        if path not in self.parts:
            CachePart.create(path, stored)
            self._read(path)
        self.parts[path].append(keys, stored)
        self._read(path)


def learned_dtype(network: CAStream) -> torch.dtype:
    """Return the type of what is trained; some probes train their head alone."""
    parts = [part for part in (network.stream, network.probe) if part is not None]
    return next(parameter.dtype for part in parts for parameter in part.parameters())


def refuse_random_views(loader: Any, read: Callable[[Any], Picked]) -> None:
    """Raise ValueError if the first item of a loader's data set has other pixels when it is read again.

    Args:
        loader: Of training images.
        read: Function that reads a batch.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return
    collate = getattr(loader, "collate_fn", None) or default_collate
    with same_generators():
        one, other = (read(collate([dataset[0]])).pair()[0] for _ in range(2))
    if not torch.equal(one, other):
        raise ValueError(
            "expected the same pixels whenever an image is read with cache_features, got two views of the first image; "
            "remove random augmentation, or pass cache_features=False."
        )


class CachePart:
    """Rows that one process wrote: a file per column, and one of keys."""

    def __init__(self, path: Path) -> None:
        columns = json.loads(path.read_text())
        self.path, self.length = path, 0
        self.shapes = [tuple(shape) for shape, _ in columns]
        self.types = [getattr(torch, name) for _, name in columns]
        self.maps: list[Tensor] = []

    @staticmethod
    def create(path: Path, columns: list[Tensor]) -> None:
        """Write the shapes and types of the columns (B, ...)."""
        facts = [(tuple(c.shape[1:]), str(c.dtype).removeprefix("torch.")) for c in columns]
        path.with_suffix(".tmp").write_text(json.dumps(facts))
        path.with_suffix(".tmp").replace(path)

    def reopen(self) -> list[bytes]:
        """Map the rows that are complete by now; return the keys of those that are new."""
        keys = self._file("keys")
        stored = keys.read_bytes() if keys.exists() else b""
        sizes = [size for column, size in enumerate(self._row_sizes()) if size]
        lengths = [
            self._file(column).stat().st_size // size if self._file(column).exists() else 0
            for column, size in enumerate(self._row_sizes())
            if size
        ]
        before, self.length = self.length, min(len(stored) // KEY_BYTES, *lengths) if sizes else 0
        self.maps = [
            torch.from_file(str(self._file(c)), shared=False, size=self.length * _numel(shape), dtype=dtype)
            if self.length and _numel(shape)
            else torch.empty(0, dtype=dtype)
            for c, (shape, dtype) in enumerate(zip(self.shapes, self.types))
        ]
        return [stored[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(before, self.length)]

    def append(self, keys: list[bytes], columns: list[Tensor]) -> None:
        """Write rows behind the complete ones: features first, then their keys."""
        for c, (column, size) in enumerate(zip(columns, self._row_sizes())):
            if size:
                self._write(c, size, b"".join(_bytes(row) for row in column.cpu()))
        self._write("keys", KEY_BYTES, b"".join(keys))

    def row(self, column: int, i: int) -> Tensor:
        """Return a row of a column as it is in the file."""
        shape = self.shapes[column]
        n = _numel(shape)
        return self.maps[column][i * n : (i + 1) * n].view(shape)

    def _write(self, column: int | str, size: int, content: bytes) -> None:
        with open(self._file(column), "ab") as file:
            _cut(file, self.length * size)  # rows that an interrupted run left without a key
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _row_sizes(self) -> list[int]:
        return [_numel(shape) * dtype.itemsize for shape, dtype in zip(self.shapes, self.types)]

    def _file(self, column: int | str) -> Path:
        return self.path.with_suffix(f".{column}")


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _cut(file: IO[bytes], size: int) -> None:
    file.truncate(size)
    file.seek(size)


def keys_of(images: Tensor) -> list[bytes]:
    """Return a checksum of the bits of each image (B, ...); threads share the work, which frees Python's lock."""
    rows = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(lambda row: hashlib.sha256(row).digest()[:KEY_BYTES], rows))


def _bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor of any type."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
