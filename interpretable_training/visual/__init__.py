"""Pictures: learning curves, maps over images, panels."""

from .curves import draw_curves
from .overlay import denormalize, overlay
from .panel import draw_panel

__all__ = ["denormalize", "draw_curves", "draw_panel", "overlay"]
