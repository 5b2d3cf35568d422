"""Lightning modules: what is trained, how, and what is logged meanwhile."""

from .ca_stream_classifier import CAStreamClassifier
from .classifier import Classifier
from .guided_gradient_classifier import GuidedGradientClassifier
from .last_layer import RetrainedHead, retrain_last_layer
from .regressor import LifetimeScore, Regressor
from .segmenter import Detector, Segmenter

__all__ = [
    "CAStreamClassifier",
    "Classifier",
    "Detector",
    "GuidedGradientClassifier",
    "LifetimeScore",
    "Regressor",
    "RetrainedHead",
    "Segmenter",
    "retrain_last_layer",
]
