"""Pictures: learning curves, maps over images."""

from .curves import draw_curves
from .overlay import overlay

__all__ = ["draw_curves", "overlay"]
