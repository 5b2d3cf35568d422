"""Terms of a training loss: guided-gradient regularization, and guidance of explanations by annotated regions."""

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
