"""Where a run's files belong."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: L.Trainer) -> Path:
    """The folder in which Lightning puts the folder of this run's checkpoints; all processes have to ask.

    Loggers such as that of W&B share a folder among their runs: there each run has one of its own, below their name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    logger = trainer.logger
    if logger is None or isinstance(logger, (CSVLogger, TensorBoardLogger)) or logger.save_dir is None:
        return folder
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return folder / str(logger.name) / version
