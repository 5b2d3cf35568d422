"""Pictures: learning curves, maps over images, contact sheets."""

from .curves import draw_curves
from .faithfulness import draw_faithfulness
from .overlay import denormalize, overlay
from .sheet import draw_sheet

__all__ = ["denormalize", "draw_curves", "draw_faithfulness", "draw_sheet", "overlay"]
