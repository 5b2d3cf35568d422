"""Lightning modules: what is trained, how, and what is logged meanwhile."""

from .classifier import Classifier

__all__ = ["Classifier"]
