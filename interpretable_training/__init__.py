"""See what image classifiers look at while they train, and train them to be more interpretable.

Import from the rooms: `interpretable_training.data`, `.models`, `.modules`, `.attribution`, `.callbacks`, `.recipes`.
This file imports nothing, so that `import interpretable_training` costs nothing.
"""

__version__ = "0.1.0"
