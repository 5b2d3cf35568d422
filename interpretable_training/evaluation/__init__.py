"""Score any methods with any metrics: `evaluate`, its table, and the Trainer that runs it as a command."""

from .evaluate import evaluate
from .restricted_maps import Restricted, box_rows
from .table import Table, join

__all__ = ["Restricted", "Table", "box_rows", "evaluate", "join"]
