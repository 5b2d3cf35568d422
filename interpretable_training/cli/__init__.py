"""The command `interpretable-training`."""

from .main import main

__all__ = ["main"]
