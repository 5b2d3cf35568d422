"""Callbacks: those that watch a training change nothing in it; the others say so."""

from interpretable_training.callbacks.background_swap import BackgroundSwap
from interpretable_training.callbacks.explanation_alarms import ExplanationAlarms
from interpretable_training.callbacks.explanation_drift import ExplanationDrift
from interpretable_training.callbacks.explanation_guidance import ExplanationGuidance
from interpretable_training.callbacks.explanation_logger import ExplanationLogger
from interpretable_training.callbacks.guided_gradient_regularization import GuidedGradientRegularization
from interpretable_training.callbacks.interpretability_metrics import InterpretabilityMetrics
from interpretable_training.callbacks.objective import Objective
from interpretable_training.callbacks.randomization_test import RandomizationTest
from interpretable_training.callbacks.shortcut_finder import ShortcutFinder
from interpretable_training.callbacks.training_curves import TrainingCurves
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget

__all__ = [
    "BackgroundSwap",
    "Budget",
    "ExplanationAlarms",
    "ExplanationDrift",
    "ExplanationGuidance",
    "ExplanationLogger",
    "GuidedGradientRegularization",
    "InterpretabilityMetrics",
    "Objective",
    "RandomizationTest",
    "ShortcutFinder",
    "TrainingCurves",
    "Watcher",
]
