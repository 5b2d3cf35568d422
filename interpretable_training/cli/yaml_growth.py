"""YAML beyond any configuration, by its aliases or its levels: refused before it is read."""

from typing import Any

import yaml  # type: ignore[import-untyped]

MOST_VALUES = 100_000
MOST_LEVELS = 50


def refuse_growth(text: str) -> None:
    """Raise for more levels than a configuration can have, or more values, counting aliases as often as they occur."""
    root = yaml.compose(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    sizes: dict[int, int] = {}

    def size(node: Any, level: int) -> int:
        if level > MOST_LEVELS:
            raise ValueError(f"expected YAML of at most {MOST_LEVELS} levels, got more; write the file with fewer.")
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES  # of an alias inside the value that it repeats
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(size(part, level + 1) for part in inner)
        return sizes[id(node)]

    count = 0 if root is None else size(root, 0)
    if count > MOST_VALUES:
        raise ValueError(
            f"expected YAML of at most {MOST_VALUES} values, got {count} with its aliases written out; "
            "write the file without aliases."
        )
