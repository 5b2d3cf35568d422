"""A LightningCLI of another project: builds callbacks from YAML and from words, and prints what they were given."""

import inspect
import json
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn


class Classifier(L.LightningModule):
    """Has the name of a module of ours."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.network = nn.Linear(width, 2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def record_arguments(cls, built):
    """Wrap `__init__` so that the arguments of each object are kept."""
    init = cls.__init__

    def wrapped(self, *args, **options):
        built[cls.__name__] = inspect.signature(init).bind(self, *args, **options).arguments
        init(self, *args, **options)

    wrapped.__wrapped__ = init
    cls.__init__ = wrapped


def main():
    """Read {"args": [[word, ...], ...]} and print the arguments of the callbacks of each command."""
    from interpretable_training import callbacks

    built = {}
    for name in callbacks.__all__:
        if issubclass(getattr(callbacks, name), L.Callback):
            record_arguments(getattr(callbacks, name), built)
    results = []
    for args in json.loads(Path(sys.argv[1]).read_text()):
        built.clear()
        try:
            cli = LightningCLI(run=False, args=args, save_config_callback=None)
        except SystemExit:
            results.append("refused")
            continue
        shown = {name: {k: repr(v) for k, v in printed.items() if k != "self"} for name, printed in built.items()}
        results.append({"callbacks": shown, "model": f"{type(cli.model).__module__}.{type(cli.model).__name__}"})
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
