"""Training against shortcuts and noisy maps.

`GuidedGradientRegularizer` aligns the gradient of the images with their guided gradient. `SwapBackgrounds` gives images
the background of other images. `GuidanceLoss` keeps the evidence of the network inside of annotated regions.
"""

from .background_swap import SwapBackgrounds
from .errors import cosine, histogram, mae, mse, printed_histogram
from .gradients import both_gradients, guided_loss_gradient, loss_gradient
from .guidance import GuidanceLoss, GuidanceParts
from .map_losses import energy, l1
from .regularizer import GuidedGradientRegularizer, Parts

__all__ = [
    "GuidanceLoss",
    "GuidanceParts",
    "GuidedGradientRegularizer",
    "Parts",
    "SwapBackgrounds",
    "both_gradients",
    "cosine",
    "energy",
    "guided_loss_gradient",
    "histogram",
    "l1",
    "loss_gradient",
    "mae",
    "mse",
    "printed_histogram",
]
