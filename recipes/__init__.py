"""Experiments, one per file: functions that return trainer, module and data, and studies of trained networks."""

import warnings

# `python -m interpretable_training.recipes.baseline` imports this file first, which imports that module already.
warnings.filterwarnings("ignore", message=r"'interpretable_training\.recipes\.\w+' found in sys.modules after import")

from interpretable_training.recipes.baseline import baseline  # noqa: E402
from interpretable_training.recipes.box_study import box_study, box_study_imagenet  # noqa: E402
from interpretable_training.recipes.ca_stream import ca_stream, ca_stream_imagenet  # noqa: E402
from interpretable_training.recipes.cmapss import cmapss  # noqa: E402
from interpretable_training.recipes.guided_gradient import guided_gradient  # noqa: E402
from interpretable_training.recipes.guided_gradient_cifar100 import guided_gradient_cifar100  # noqa: E402
from interpretable_training.recipes.method_table import method_table  # noqa: E402
from interpretable_training.recipes.opti_cam_study import opti_cam_study, opti_cam_study_imagenet  # noqa: E402
from interpretable_training.recipes.recipe import Recipe, Study  # noqa: E402
from interpretable_training.recipes.sanity_checks import sanity_checks  # noqa: E402
from interpretable_training.recipes.shortcut import shortcut  # noqa: E402

__all__ = [
    "Recipe",
    "Study",
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
    "sanity_checks",
    "shortcut",
]
