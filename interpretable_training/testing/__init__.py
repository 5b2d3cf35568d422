"""Check that watching callbacks do not change a training."""

from .observer_report import Difference, ObserverReport
from .verify import verify_observer

__all__ = ["Difference", "ObserverReport", "verify_observer"]
