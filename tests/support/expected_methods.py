"""The methods that start at baselines, in a cheap form, and their paths by hand."""

import pytest
from torch import Tensor

from interpretable_training.attribution import (
    Attribution,
    Baselines,
    ExpectedGradCAM,
    ExpectedGradCAMPlusPlus,
    GuidedExpectedGradCAM,
    HyperExpectedGradCAM,
)
from interpretable_training.attribution.expected_grad_cam import draw_paths


def expected_methods(baselines: Tensor | Baselines, **options: object) -> dict[str, Attribution]:
    """Return name -> method for the family of Expected Grad-CAM, with `options` of `ExpectedGradCAM`."""
    cam = ExpectedGradCAM(baselines=baselines, n=3, **options)
    return {
        "cam": cam,
        "plusplus": ExpectedGradCAMPlusPlus(baselines=baselines, n=3, **options),
        "guided": GuidedExpectedGradCAM(cam),
        "mask": HyperExpectedGradCAM(cam, local_draws=1, most=1),
        "zoom": HyperExpectedGradCAM(cam, local_draws=1, most=1, neighborhood="zoom"),
    }


every_expected_method = pytest.mark.parametrize("name", ["cam", "plusplus", "guided", "mask", "zoom"])


def paths(cam: ExpectedGradCAM, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return x[s] and x'[s] of every draw for all images, (S, B, C, ...) each."""
    index, a = draw_paths(cam)
    base = cam.baselines[index][:, None].expand(-1, *images.shape)
    return base + a.reshape(-1, *[1] * images.ndim) * (images - base), base
