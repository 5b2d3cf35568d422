"""How good maps are, as numbers: torchmetrics whose passports say what they mean, and `evaluate`, which shares work.

AverageDrop().update(prob, prob_masked)                        # scores (B,)
Insertion(steps=28).update(model, images, saliency, target)    # images are scored again
EnergyPointingGame().update(saliency, mask=mask)               # maps are compared with where the object is
table = evaluate(model, methods, metrics, data)                # every pass once
checks = ParameterRandomization()(model, methods, images)      # sanity checks of the methods themselves
"""

from .adcc import ADCC, Coherency, Complexity
from .aopc import AOPC
from .box_accuracy import BoxAccuracy
from .components import connected_components
from .confidence import AverageDrop, AverageDropInDeletion, AverageGain, AverageIncrease
from .curves import Deletion, Insertion, InsertionDeletion
from .data_randomization import DataRandomization, memorize
from .evaluate import evaluate
from .invariance import InputInvariance
from .localization import EnergyLocalizationError, LocalizationError, OfficialMetric
from .pointing import EnergyPointingGame, PixelF1, PointingGame
from .px_ap import PxAP
from .randomization import ParameterRandomization
from .restricted import Restricted, box_study
from .road import ROAD
from .saliency_metric import SaliencyMetric
from .sanity import SanityTable
from .sensitivity import MaxSensitivity
from .table import Table, join
from .units import UnitIoU, measure_units, unit_thresholds

__all__ = [
    "ADCC",
    "AOPC",
    "ROAD",
    "AverageDrop",
    "AverageDropInDeletion",
    "AverageGain",
    "AverageIncrease",
    "BoxAccuracy",
    "Coherency",
    "Complexity",
    "DataRandomization",
    "Deletion",
    "EnergyLocalizationError",
    "EnergyPointingGame",
    "InputInvariance",
    "Insertion",
    "InsertionDeletion",
    "LocalizationError",
    "MaxSensitivity",
    "OfficialMetric",
    "ParameterRandomization",
    "PixelF1",
    "PointingGame",
    "PxAP",
    "Restricted",
    "SaliencyMetric",
    "SanityTable",
    "Table",
    "UnitIoU",
    "box_study",
    "connected_components",
    "evaluate",
    "join",
    "measure_units",
    "memorize",
    "unit_thresholds",
]
