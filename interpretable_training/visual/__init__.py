"""Pictures of what was trained."""

from .curves import draw_curves

__all__ = ["draw_curves"]
