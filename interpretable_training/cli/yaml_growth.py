"""YAML whose aliases, written out, exceed any configuration: refused before it is read."""

from typing import Any

import yaml  # type: ignore[import-untyped]

MOST_VALUES = 100_000


def refuse_growth(text: str) -> None:
    """Raise for YAML of more values than a configuration can have, aliases counted as often as they occur."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES  # of an alias inside the value that it repeats
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, inner))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
        count = 0 if root is None else size(root)
    except RecursionError as error:
        raise ValueError("expected YAML of few levels, got more than Python can nest; write fewer.") from error
    if count > MOST_VALUES:
        raise ValueError(
            f"expected YAML of at most {MOST_VALUES} values, got {count} with its aliases written out; "
            "write the file without aliases."
        )
