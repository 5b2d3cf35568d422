"""Discovery of the names of classes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ATTRIBUTES = ("class_names", "classes", "categories", "class_to_idx", "id2label")
INSIDE = ("dataset", "datasets", "config", "model", "network", "backbone")  # of a Subset, a ConcatDataset, a network
DEPTH = 4


def find_class_names(given: Sequence[str] | None, *holders: Any) -> tuple[list[str] | None, str]:
    """Return the names of the classes and their source: given, or the first holder that has them."""
    if given is not None:
        return [str(name) for name in given], "given"
    for holder in holders:
        for part in parts_of(holder):
            for attribute in ATTRIBUTES:
                names = as_names(attribute, getattr(part, attribute, None))
                if names is not None:
                    return names, f"{type(part).__name__}.{attribute}"
    return None, "not found: numbers"


def parts_of(holder: Any, depth: int = DEPTH) -> Iterator[Any]:
    """Yield a holder of class names and what it holds: the data set of a Subset, the configuration of a network."""
    if holder is None or depth == 0:
        return
    yield holder
    for name in INSIDE:
        inner = getattr(holder, name, None)
        if name == "datasets":  # of a ConcatDataset, which are alike
            inner = inner[0] if isinstance(inner, (list, tuple)) and inner else None
        if not isinstance(inner, (str, Mapping)):
            yield from parts_of(inner, depth - 1)


def as_names(attribute: str, value: Any) -> list[str] | None:
    """Return names in the order of the classes, of a list or a dict; None for anything else, also for LABEL_0."""
    if isinstance(value, Mapping) and value:
        pairs = list(value.items())
        if all(isinstance(number, int) for _, number in pairs):
            pairs = [(number, name) for name, number in pairs]
        if not all(isinstance(number, int) for number, _ in pairs):
            return None
        value = [name for _, name in sorted(pairs, key=lambda pair: pair[0])]
        if [number for number, _ in sorted(pairs, key=lambda pair: pair[0])] != list(range(len(pairs))):
            return None
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, (str, int)) for name in value):
        return None
    names = [str(name) for name in value]
    return None if attribute == "id2label" and names == [f"LABEL_{i}" for i in range(len(names))] else names


def name_of(names: list[str] | None, label: int) -> str:
    """Return the name of a class, "class N" where it has none."""
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"
