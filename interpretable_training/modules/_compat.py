"""Private names of Lightning on which the modules rely.

`tests/modules/test_compat_modules.py` compares each of them with the installed version.
"""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch.core.saving import CHECKPOINT_PAST_HPARAMS_KEYS, load_hparams_from_tags_csv
from lightning.pytorch.core.saving import load_hparams_from_yaml as load_yaml

INSTANTIATOR = "_instantiator"  # among the hyper-parameters of modules that Lightning's command line built


def attached_trainer(module: L.LightningModule) -> L.Trainer | None:
    """Return the trainer of a module or None: the public property raises where there is none."""
    return module._trainer


def saved_hyper_parameters(module: type[L.LightningModule], path: Any, hparams_file: str | Path | None) -> list[Any]:
    """Return all hyper-parameters that `load_from_checkpoint` would use: only its own parts read them all alike.

    Args:
        module: Class of the module.
        path: Path, address or open file of a checkpoint.
        hparams_file: File of hyper-parameters, as for `load_from_checkpoint`.
    """
    checkpoint = _load(path, map_location="cpu", weights_only=True)
    if hasattr(path, "seek"):
        path.seek(0)
    sources = [checkpoint.get(key) for key in (*CHECKPOINT_PAST_HPARAMS_KEYS, module.CHECKPOINT_HYPER_PARAMS_KEY)]
    if hparams_file is not None:
        csv = str(hparams_file).lower().endswith("csv")
        sources.append(load_hparams_from_tags_csv(hparams_file) if csv else load_yaml(hparams_file))
    return [values for values in sources if values]
