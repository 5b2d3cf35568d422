"""Guided-gradient regularization: the gradient of the images is pulled towards their guided gradient in training.

loss, parts = GuidedGradientRegularizer(weight=7.5e-3)(model, images, target)
"""

from .errors import cosine, histogram, mae, mse, printed_histogram
from .gradients import both_gradients, guided_gradient, input_gradient
from .regularizer import GuidedGradientRegularizer, Parts

__all__ = [
    "GuidedGradientRegularizer",
    "Parts",
    "both_gradients",
    "cosine",
    "guided_gradient",
    "histogram",
    "input_gradient",
    "mae",
    "mse",
    "printed_histogram",
]
