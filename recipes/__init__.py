"""Experiments, one per file: functions that return trainer, module and data, and studies of trained networks.

python -m interpretable_training.recipes baseline --max_epochs 4
"""

from interpretable_training.recipes.baseline import baseline
from interpretable_training.recipes.box_study import box_study, box_study_imagenet
from interpretable_training.recipes.ca_stream import ca_stream, ca_stream_imagenet
from interpretable_training.recipes.cmapss import cmapss
from interpretable_training.recipes.guided_gradient import guided_gradient
from interpretable_training.recipes.guided_gradient_cifar100 import guided_gradient_cifar100
from interpretable_training.recipes.method_table import method_table
from interpretable_training.recipes.opti_cam_study import opti_cam_study, opti_cam_study_imagenet
from interpretable_training.recipes.recipe import EvaluationRecipe, Recipe
from interpretable_training.recipes.repair import repair, repair_table
from interpretable_training.recipes.sanity_checks import sanity_checks
from interpretable_training.recipes.shortcut import shortcut

__all__ = [
    "EvaluationRecipe",
    "Recipe",
    "baseline",
    "box_study",
    "box_study_imagenet",
    "ca_stream",
    "ca_stream_imagenet",
    "cmapss",
    "guided_gradient",
    "guided_gradient_cifar100",
    "method_table",
    "opti_cam_study",
    "opti_cam_study_imagenet",
    "repair",
    "repair_table",
    "sanity_checks",
    "shortcut",
]
