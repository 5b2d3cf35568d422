"""Guided-gradient regularization: training aligns the gradient of the images with their guided gradient."""

from .errors import cosine, histogram, mae, mse, printed_histogram
from .gradients import both_gradients, guided_loss_gradient, loss_gradient
from .regularizer import GuidedGradientRegularizer, Parts

__all__ = [
    "GuidedGradientRegularizer",
    "Parts",
    "both_gradients",
    "cosine",
    "guided_loss_gradient",
    "histogram",
    "loss_gradient",
    "mae",
    "mse",
    "printed_histogram",
]
