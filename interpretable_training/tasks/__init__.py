"""Tasks: how the output of a network becomes scores, masks and boxes that are explained."""

from .base import Example, Task, TaskScores
from .choose import TASKS, choose_task, task_named
from .classes import Classification, MultiLabel, Regression
from .detection import Detection
from .embedding import Embedding
from .network import Reading, find_network
from .segmentation import Segmentation

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Embedding",
    "Example",
    "MultiLabel",
    "Reading",
    "Regression",
    "Segmentation",
    "Task",
    "TaskScores",
    "choose_task",
    "find_network",
    "task_named",
]
