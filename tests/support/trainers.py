"""Trainers for tests: on the CPU, without a progress bar, logger or checkpoints."""

import lightning as L


def quiet_trainer(folder, **options):
    """Return a trainer of one epoch that writes nothing unless asked to."""
    return L.Trainer(
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options},
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
