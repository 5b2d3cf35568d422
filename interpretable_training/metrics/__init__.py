"""How good maps are, as numbers: torchmetrics whose passports say what they mean, and `evaluate`, which shares work.

AverageDrop().update(prob, prob_masked)                        # scores (B,)
Insertion(steps=28).update(model, images, saliency, target)    # images are scored again
table = evaluate(model, methods, metrics, data)                # every pass once
"""

from .adcc import ADCC, Coherency, Complexity
from .aopc import AOPC
from .confidence import AverageDrop, AverageDropInDeletion, AverageGain, AverageIncrease
from .curves import Deletion, Insertion, InsertionDeletion
from .evaluate import evaluate
from .road import ROAD
from .sensitivity import MaxSensitivity
from .table import Table, join

__all__ = [
    "ADCC",
    "AOPC",
    "ROAD",
    "AverageDrop",
    "AverageDropInDeletion",
    "AverageGain",
    "AverageIncrease",
    "Coherency",
    "Complexity",
    "Deletion",
    "Insertion",
    "InsertionDeletion",
    "MaxSensitivity",
    "Table",
    "evaluate",
    "join",
]
