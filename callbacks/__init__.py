"""Callbacks that watch a training and change nothing in it."""

from interpretable_training.callbacks.training_curves import TrainingCurves

__all__ = ["TrainingCurves"]
