"""Metrics of saliency maps: torchmetrics with passports that define their numbers, and `evaluate`, which shares work.

AverageDrop().update(prob, prob_masked)                        # scores (B,)
Insertion(steps=28).update(model, images, saliency, target)    # images are scored again
EnergyPointingGame().update(saliency, mask=mask)               # maps are compared with where the object is
table = evaluate(model, methods, metrics, data)                # every pass once
checks = ParameterRandomization()(model, methods, images)      # sanity checks of the methods themselves
"""

from typing import TYPE_CHECKING, Any

from interpretable_training.attribution.core.components import connected_components

from . import functional as functional
from .adcc import ADCC, ARCC, Coherency, Complexity
from .aopc import AOPC
from .behavior import (
    BackgroundAccuracy,
    ObjectAccuracy,
    OtherBackgroundAccuracy,
    PlainAccuracy,
    TopReplacedAccuracy,
)
from .box_accuracy import BoxAccuracy
from .confidence import AverageDrop, AverageDropInDeletion, AverageGain, AverageIncrease
from .curves import Deletion, Insertion, InsertionDeletion
from .localization import EnergyLocalizationError, LocalizationError, OfficialMetric
from .network_dissection import UnitIoU, measure_units, unit_thresholds
from .pointing import EnergyPointingGame, PixelF1, PointingGame
from .px_ap import PxAP
from .region_effects import Infidelity, SingleDeletion
from .road import ROAD
from .saliency_metric import SaliencyMetric
from .sanity.checks import SanityTable
from .sanity.data_randomization import DataRandomization, memorize
from .sanity.input_invariance import InputInvariance
from .sanity.parameter_randomization import ParameterRandomization
from .sensitivity import MaxSensitivity
from .worst_group import WorstGroupAccuracy

if TYPE_CHECKING:
    from interpretable_training.evaluation import Restricted, Table, box_rows, evaluate, join

__all__ = [
    "ADCC",
    "AOPC",
    "ARCC",
    "ROAD",
    "AverageDrop",
    "AverageDropInDeletion",
    "AverageGain",
    "AverageIncrease",
    "BackgroundAccuracy",
    "BoxAccuracy",
    "Coherency",
    "Complexity",
    "DataRandomization",
    "Deletion",
    "EnergyLocalizationError",
    "EnergyPointingGame",
    "Infidelity",
    "InputInvariance",
    "Insertion",
    "InsertionDeletion",
    "LocalizationError",
    "MaxSensitivity",
    "ObjectAccuracy",
    "OfficialMetric",
    "OtherBackgroundAccuracy",
    "ParameterRandomization",
    "PixelF1",
    "PlainAccuracy",
    "PointingGame",
    "PxAP",
    "Restricted",
    "SaliencyMetric",
    "SanityTable",
    "SingleDeletion",
    "Table",
    "TopReplacedAccuracy",
    "UnitIoU",
    "WorstGroupAccuracy",
    "box_rows",
    "connected_components",
    "evaluate",
    "join",
    "measure_units",
    "memorize",
    "unit_thresholds",
]


def __getattr__(name: str) -> Any:
    """Import what belongs to the room of evaluation, which imports this one, when it is first asked for."""
    if name in ("Restricted", "Table", "box_rows", "evaluate", "join"):
        from interpretable_training import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
