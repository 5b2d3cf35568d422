"""Experiments, one per file: functions that return trainer, module and data."""

import warnings

# `python -m interpretable_training.recipes.baseline` imports this file first, which imports that module already.
warnings.filterwarnings("ignore", message=r"'interpretable_training\.recipes\.\w+' found in sys.modules after import")

from interpretable_training.recipes.baseline import baseline  # noqa: E402
from interpretable_training.recipes.ca_stream import ca_stream, ca_stream_imagenet  # noqa: E402
from interpretable_training.recipes.guided_gradient import guided_gradient  # noqa: E402
from interpretable_training.recipes.guided_gradient_cifar100 import guided_gradient_cifar100  # noqa: E402
from interpretable_training.recipes.recipe import Recipe  # noqa: E402
from interpretable_training.recipes.shortcut import shortcut  # noqa: E402

__all__ = [
    "Recipe",
    "baseline",
    "ca_stream",
    "ca_stream_imagenet",
    "guided_gradient",
    "guided_gradient_cifar100",
    "shortcut",
]
