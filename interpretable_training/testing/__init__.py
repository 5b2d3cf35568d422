"""Check that watching callbacks do not change a training."""

from .verify import Difference, ObserverReport, verify_observer

__all__ = ["Difference", "ObserverReport", "verify_observer"]
