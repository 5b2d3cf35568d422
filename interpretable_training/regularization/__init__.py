"""Training against shortcuts and noisy maps.

`GuidedGradientRegularizer` aligns the gradient of the images with their guided gradient. `SwapBackgrounds` gives images
the background of other images.
"""

from .background_swap import SwapBackgrounds
from .errors import cosine, histogram, mae, mse, printed_histogram
from .gradients import both_gradients, guided_loss_gradient, loss_gradient
from .regularizer import GuidedGradientRegularizer, Parts

__all__ = [
    "GuidedGradientRegularizer",
    "Parts",
    "SwapBackgrounds",
    "both_gradients",
    "cosine",
    "guided_loss_gradient",
    "histogram",
    "loss_gradient",
    "mae",
    "mse",
    "printed_histogram",
]
