"""Check that a watching callback changes nothing in a training."""

from .verify import Difference, Report, verify_observer

__all__ = ["Difference", "Report", "verify_observer"]
