"""Guidance of explanations as plain values, which checkpoints hold."""

from typing import Any

from interpretable_training.attribution.core.base import Attribution
from interpretable_training.regularization import GuidanceLoss

from .class_paths import loaded
from .plain_module import name_of_object

PLAIN = (str, int, float, bool, type(None))


def plain_guidance(guidance: GuidanceLoss) -> dict[str, Any] | str:
    """Return the options of guidance as plain values, or what names it where one of them is a function or object."""
    method = type(guidance.method)
    options = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(guidance.method).items()}
    values = [*options.values(), guidance.loss]
    is_plain = all(
        isinstance(v, PLAIN) or (isinstance(v, list) and all(isinstance(w, PLAIN) for w in v)) for v in values
    )
    path = f"{method.__module__}.{method.__qualname__}"
    if not is_plain or loaded(path) is not method:
        return name_of_object(guidance)
    return {**vars(guidance), "method": {"class_path": path, "init_args": options}}


def guidance_of(saved: Any) -> GuidanceLoss | None:
    """Return guidance from the values that `plain_guidance` returned; anything else unchanged."""
    if not isinstance(saved, dict):
        return saved
    method = saved["method"]
    cls = loaded(method["class_path"])
    if not isinstance(cls, type) or not issubclass(cls, Attribution):
        raise ValueError(
            f"expected the class of a method as method of guidance, got {method['class_path']!r}; pass guidance=... to "
            "load_from_checkpoint."
        )
    return GuidanceLoss(**{**saved, "method": cls(**method["init_args"])})
