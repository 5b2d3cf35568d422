"""Draw learning curves, maps over images and series, contact sheets, and curves of metrics."""

from .faithfulness_curves import draw_faithfulness
from .learning_curves import draw_curves
from .overlay import denormalize, overlay
from .series import draw_series
from .sheet import draw_sheet

__all__ = ["denormalize", "draw_curves", "draw_faithfulness", "draw_series", "draw_sheet", "overlay"]
