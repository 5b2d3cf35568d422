"""Pictures: learning curves, maps over images, panels."""

from .curves import draw_curves
from .faithfulness import draw_faithfulness
from .overlay import denormalize, overlay
from .panel import draw_panel

__all__ = ["denormalize", "draw_curves", "draw_faithfulness", "draw_panel", "overlay"]
