"""Check what metrics are given, before anything is computed: names, types, shapes, values, and that all fit together.

Maps and scores that are not numbers pass: images without a number are left out and counted.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from interpretable_training.attribution.core.targets import as_classes

SLACK = 1e-4  # by how much a map may leave [0, 1] through rounding
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PROBABILITIES = ("prob", "prob_masked", "prob_deleted")
MASKS = ("mask", "shortcut_mask", "ignore_mask")


def check_names(update: Callable[..., None], owner: str, names: Iterable[str]) -> None:
    """Refuse keywords that the update of a metric does not take, and name the closest that it takes."""
    parameters = inspect.signature(update).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in names:
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            advice = f"did you mean {close[0]}=?" if close else "leave it out."
            raise TypeError(f"expected keywords of {owner} among {', '.join(parameters)}, got {name}=; {advice}")


def check_inputs(facts: Mapping[str, Any], score: str = "prob") -> None:
    """Refuse inputs of a metric that are wrong by themselves, or that do not fit together.

    Args:
        facts: name -> what `update` was given; None counts as not given.
        score: what the given scores are; all but "logit" are probabilities.
    """
    given = {name: value for name, value in facts.items() if value is not None}
    if "model" in given and not isinstance(given["model"], nn.Module):
        raise TypeError(f"expected a torch.nn.Module as model, got {type(given['model']).__name__}.")
    images = check_images(given["images"]) if "images" in given else None
    if "saliency" in given:
        check_saliency(given["saliency"], images)
    for name in PROBABILITIES:
        if name in given:
            check_given_scores(name, given[name], score)
    batch = {name: given[name] for name in ("images", "saliency", *PROBABILITIES) if name in given}
    if "saliency_masked" in given:
        batch["saliency_masked"] = _check_again(given["saliency_masked"], given.get("saliency"))
    _check_batch(batch)
    if batch:
        maps = given.get("saliency", None if images is None else images[:, 0])
        _check_annotations(given, next(iter(batch.values())), maps)


def _check_batch(batch: Mapping[str, Tensor]) -> None:
    """Refuse tensors of different lengths or devices."""
    for name, value in batch.items():
        first, reference = next(iter(batch.items()))
        if len(value) != len(reference):
            raise ValueError(f"expected as many {name} as {first}, got {len(value)} and {len(reference)}.")
        if value.device != reference.device:
            raise ValueError(
                f"expected {name} on the device of {first}, {reference.device}, got {value.device}; move one of them."
            )


def _check_annotations(given: Mapping[str, Any], reference: Tensor, maps: Tensor | None) -> None:
    """Refuse masks, boxes, classes and what was classified correctly that do not belong to the batch."""
    for name in MASKS:
        if name in given and maps is not None:
            check_mask(name, given[name], tuple(maps.shape))
    if "boxes" in given:
        padded_boxes(given["boxes"], len(reference))
    if "correct" in given:
        check_correct(given["correct"], len(reference))
    target = given.get("target")
    if target is not None and not callable(target) and not isinstance(target, str) and len(reference):
        as_classes(target, reference)


def _dense(name: str, value: Any, form: str, advice: str) -> Tensor:
    """Return floating point numbers in a plain tensor; refuse anything else."""
    if not isinstance(value, Tensor):
        raise ValueError(f"expected {name} {form}, got {type(value).__name__}; {advice}")
    refuse_storage(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"expected floating point {name} {form}, got {value.dtype}; {advice}")
    return value


def refuse_storage(name: str, value: Tensor) -> None:
    """Refuse sparse, nested, quantized and meta tensors."""
    kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    kind = "quantized" if value.is_quantized else "meta" if value.is_meta else kind
    if kind != "strided":
        raise TypeError(f"expected {name} as a dense tensor of numbers, got a {kind} one; convert it before.")


def shape_of(value: Any) -> str:
    """Return the shape and type of a tensor, or the type of anything else, for an error."""
    return f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def check_activations(A: Any) -> Tensor:
    """Return finite activations (B, K, h, w), or refuse them."""
    A = _dense("activations", A, "(B, K, h, w)", "pass the features of a layer.")
    if A.ndim != 4 or not A.numel():
        raise ValueError(f"expected activations (B, K, h, w) of at least one image, got shape {tuple(A.shape)}.")
    if not bool(A.isfinite().all()):
        raise ValueError("expected activations of finite numbers, got NaN or infinity; look at the images and weights.")
    return A


def check_images(images: Any) -> Tensor:
    """Return images (B, C, *spatial) or refuse them; those that are not numbers pass."""
    images = _dense("images", images, "(B, C, H, W), normalized as in training,", "pass what the network gets.")
    if images.ndim < 3:
        raise ValueError(f"expected images (B, C, H, W) or signals (B, C, T), got shape {tuple(images.shape)}.")
    if not images.numel():
        what = "an empty batch" if not len(images) else f"shape {tuple(images.shape)}"
        raise ValueError(f"expected at least one image with pixels, got {what}.")
    return images


def check_saliency(saliency: Any, images: Tensor | None) -> Tensor:
    """Return maps in [0, 1] at the images' resolution, or refuse them; NaN passes."""
    form = "(B, H, W) as a tensor"
    saliency = _dense("saliency", saliency, form, "pass normalize(GradCAM()(model, images, target)).")
    if saliency.ndim < 2:
        raise ValueError(f"expected saliency {form}, got shape {tuple(saliency.shape)}.")
    if images is not None and saliency.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"expected saliency {(len(images), *images.shape[2:])}, one map per image at its resolution, got "
            f"{tuple(saliency.shape)}; methods upsample by themselves unless upsample=False."
        )
    if saliency.ndim == 4 and saliency.shape[1] == 1:
        raise ValueError(f"expected saliency {form}, got shape {tuple(saliency.shape)}; pass saliency[:, 0].")
    if len(saliency) and not saliency.numel():
        raise ValueError(f"expected saliency {form} with pixels, got shape {tuple(saliency.shape)}.")
    saliency = saliency.detach()
    low, high = _extremes(saliency)
    if not -SLACK <= low <= high <= 1 + SLACK:
        raise ValueError(f"expected saliency in [0, 1], got {low:.4g} to {high:.4g}; pass normalize(saliency).")
    return saliency if low >= 0 and high <= 1 else saliency.clamp(0, 1)


def _check_again(again: Any, saliency: Tensor | None) -> Tensor:
    """Return the maps of the masked images, of any range, or refuse them."""
    shape = "(B, H, W)" if saliency is None else f"{tuple(saliency.shape)} as saliency"
    again = _dense("saliency_masked", again, f"{shape}, as a tensor", "pass the maps of the masked images.")
    if again.ndim < 2 or (saliency is not None and again.shape != saliency.shape):
        raise ValueError(f"expected saliency_masked {shape}, got {tuple(again.shape)}.")
    if bool(again.isinf().any()):
        raise ValueError("expected saliency_masked of finite numbers, got infinite ones; pass maps as methods return.")
    return again


def check_given_scores(name: str, scores: Any, score: str) -> Tensor:
    """Return scores (B,), or refuse them; those that are not finite pass."""
    advice = "pick those of the target class."
    scores = _dense(name, scores, "(B,), one score per image", advice)
    if scores.ndim != 1:
        raise ValueError(f"expected {name} (B,), one score per image, got shape {tuple(scores.shape)}; {advice}")
    known = scores.detach()[scores.isfinite()].double()
    if score != "logit" and known.numel() and not -1e-6 <= float(known.min()) <= float(known.max()) <= 1 + 1e-6:
        raise ValueError(
            f"expected {name} as probabilities in [0, 1], got {float(known.min()):.4g} to {float(known.max()):.4g}; "
            "pass logits.softmax(1) of the target class, or score='logit'."
        )
    return scores


def check_correct(correct: Any, B: int) -> Tensor:
    """Return which images are classified correctly (B,), or refuse it; NaN is unknown."""
    try:
        flags = torch.as_tensor(correct)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"expected correct ({B},) of zeros and ones, got {correct!r:.100}.") from error
    refuse_storage("correct", flags)
    if flags.shape != (B,):
        raise ValueError(
            f"expected correct ({B},), whether each image is classified correctly, got {tuple(flags.shape)}."
        )
    if not bool(((flags == 0) | (flags == 1) | flags.isnan()).all()):
        raise ValueError(f"expected correct of zeros and ones, got {flags.tolist()!s:.100}; compare the classes first.")
    return flags


def check_mask(name: str, mask: Any, shape: Sequence[int]) -> Tensor:
    """Return a mask, 0 outside of the object and more inside, or refuse it."""
    if not isinstance(mask, Tensor) or tuple(mask.shape) != tuple(shape):
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"expected {name} {tuple(shape)}, one per map at its resolution, got {got}.")
    refuse_storage(name, mask)
    refuse_values(name, mask)
    return mask


def refuse_values(name: str, mask: Tensor) -> None:
    """Refuse masks that hold complex, negative or infinite numbers, or none."""
    if mask.is_complex():
        raise TypeError(f"expected {name} of booleans or numbers of at least 0, got {mask.dtype}.")
    if not mask.dtype.is_signed or not mask.numel():  # booleans and bytes are never negative
        return
    low, high = (float(v) for v in mask.aminmax())
    if not 0 <= low <= high < math.inf:  # NaN is in no range
        raise ValueError(
            f"expected {name} with 0 outside of the object and more inside, got {low:.4g} to {high:.4g}; pass "
            "booleans, as in labels == c."
        )


def padded_boxes(boxes: Any, B: int) -> Tensor:
    """Return boxes (B, n, 4) in float32 with n of at least 1, NaN where there are fewer; refuse what is no box.

    Args:
        boxes: (B, n, 4), padded with NaN, one per image (B, 4), or a list of (n, 4).
        B: number of images.
    """
    wanted = f"expected boxes ({B}, n, 4), padded with NaN, or a list of {B} tensors (n, 4), got"
    if not isinstance(boxes, Tensor):
        if isinstance(boxes, (str, bytes)) or not isinstance(boxes, (Sequence, Iterable)):
            raise TypeError(f"{wanted} {type(boxes).__name__}.")
        try:
            listed = [torch.as_tensor(rows, dtype=torch.float32) for rows in boxes]
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{wanted} {boxes!r:.100}.") from error
        wrong = [tuple(rows.shape) for rows in listed if rows.numel() and rows.shape[-1] != 4]
        if wrong or len(listed) != B:
            raise ValueError(f"{wanted} {len(listed)}{f' with one of {wrong[0]}' if wrong else ''}.")
        rows = [rows.reshape(-1, 4) for rows in listed]
        boxes = pad_sequence(rows, batch_first=True, padding_value=torch.nan) if rows else torch.zeros(0, 1, 4)
    refuse_storage("boxes", boxes)
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise TypeError(f"{wanted} {boxes.dtype}.")
    boxes = boxes[:, None] if boxes.ndim == 2 else boxes
    if boxes.ndim != 3 or boxes.shape[2] != 4 or len(boxes) != B:
        raise ValueError(f"{wanted} {tuple(boxes.shape)}.")
    boxes = boxes.detach().float()
    _refuse_boxes(boxes)
    return boxes if boxes.shape[1] else boxes.new_full((B, 1, 4), torch.nan)


def _refuse_boxes(boxes: Tensor) -> None:
    """Refuse boxes (B, n, 4) that are infinite, NaN in part, or end before they begin."""
    known = ~boxes.isnan()
    whole = known.all(2) | ~known.any(2)
    ordered = ~(boxes[..., 2:] < boxes[..., :2]).any(2)
    wrong = ~whole | boxes.isinf().any(2) | ~ordered
    if bool(wrong.any()):
        raise ValueError(
            f"expected boxes x1, y1, x2, y2 of finite numbers with x1 <= x2 and y1 <= y2, or NaN as padding, got "
            f"{boxes[wrong][0].tolist()}; boxes x, y, width, height have to be converted."
        )


def _extremes(values: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest number; 0 and 0 of none. NaN is left out."""
    if not values.numel():
        return 0.0, 0.0
    low, high = values.aminmax()
    if bool(low.isnan()):
        values = values[~values.isnan()]
        return _extremes(values)
    return float(low), float(high)
