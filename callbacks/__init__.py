"""Callbacks: those that watch a training change nothing in it; the others say so."""

from interpretable_training.callbacks.guided_gradient import GuidedGradientRegularization
from interpretable_training.callbacks.training_curves import TrainingCurves
from interpretable_training.callbacks.warm_up import LearningRateWarmUp

__all__ = ["GuidedGradientRegularization", "LearningRateWarmUp", "TrainingCurves"]
