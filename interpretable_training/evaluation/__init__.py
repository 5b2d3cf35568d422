"""Score any methods with any metrics: `evaluate`, its table, shortcuts, and the Trainer that runs it as a command."""

from .evaluate import evaluate
from .restricted_maps import Restricted, box_rows
from .shortcuts import Shortcuts, find_shortcuts
from .table import Table, join

__all__ = ["Restricted", "Shortcuts", "Table", "box_rows", "evaluate", "find_shortcuts", "join"]
