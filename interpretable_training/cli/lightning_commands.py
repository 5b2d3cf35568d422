"""The commands of Lightning's command line, which finds classes of this package by their names, and evaluate."""

import os
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Imported for their names: a configuration may use the short name of any imported class.
import interpretable_training.attribution
import interpretable_training.callbacks
import interpretable_training.data
import interpretable_training.metrics
import interpretable_training.models
import interpretable_training.modules
from interpretable_training.attribution import Attribution
from interpretable_training.evaluation.trainer import EvaluationTrainer, read_checkpoint
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.mistakes import MistakeError, require_writable
from interpretable_training.modules.class_paths import check_configuration, check_hyper_parameters, walk
from interpretable_training.sweeps.callback import SweepReport
from interpretable_training.sweeps.metric import FILE

from ._compat import command_parsers, is_broken_yaml, option_names
from .errors import rewrite_parser_error
from .integers import check_integers
from .saved_configs import join_methods, saved_config_reader, without_imports
from .yaml_growth import refuse_growth

PLAIN_YAML = get_loader("yaml")
NAMED = (L.LightningModule, L.LightningDataModule, Callback, Logger, Optimizer, LRScheduler, Attribution, ImageMetric)


def run(argv: list[str]) -> None:
    """Parse the words after `interpretable-training`, of which the first is the command, and run it."""
    read: Callable[[str], Any] = load_yaml
    if argv[0] == "evaluate":
        argv = join_methods(without_imports(argv))
        read = saved_config_reader(argv, load_yaml)
    set_loader("yaml", read, exceptions=(yaml.YAMLError, ValueError))  # of numbers with too many digits
    try:
        of_one_command(argv[0])(
            L.LightningModule,
            L.LightningDataModule,
            trainer_class=EvaluationTrainer,
            save_config_kwargs={"overwrite": True},  # a second run in the same folder must not end in an error
            trainer_defaults={
                "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": ""}},
                "callbacks": [SweepReport()] if FILE in os.environ else [],  # of a run that a local sweep started
            },
            parser_kwargs={"exit_on_error": False, argv[0]: {"exit_on_error": False}},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # arguments of the modules define them
            args=argv,
        )
    except ArgumentError as error:
        raise MistakeError(" ".join(str(error).split())) from error


def load_yaml(text: str) -> Any:
    """Return the content of YAML whose aliases do not grow beyond what a configuration can be."""
    with mistakes():
        refuse_growth(text)
    return PLAIN_YAML(text)


class ShortErrorsCLI(LightningCLI):
    """Lightning's command line, whose errors name the mistake in one paragraph."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "evaluate": {"model", "datamodule"}}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)  # what `run` passes
        try:
            self.config = parser.parse_args(args)
        except UnicodeDecodeError as error:
            raise MistakeError(
                f"expected files in UTF-8, got {named_files(args)}: {error}; save them as such."
            ) from error
        except ArgumentError as error:
            message = str(error)
            if is_broken_yaml(message):
                message = f"expected a file in YAML, got {named_files(args)}: {message}; mend what is named here."
                raise MistakeError(" ".join(message.split())) from error
            raise MistakeError(rewrite_parser_error(message, self.option_names(), class_names())) from error

    def _parse_ckpt_path(self) -> None:
        self.read_checkpoint_arguments()
        with mistakes():
            check_integers(self.config[self.config.subcommand])

    def read_checkpoint_arguments(self) -> None:
        """Take the model's options from the checkpoint, if it names its class; raise for other class paths in it."""
        # Checkpoints that were made in Python do not name their class, and Lightning fails on them: the options of the
        # command line count then.
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and Path(path).is_dir() and not (Path(path) / ".metadata").exists():  # of a sharded checkpoint
            raise MistakeError(f"expected a checkpoint, got {path!r}, which is a folder; pass a file in it.")
        if not path or not Path(path).is_file():
            return
        values = read_checkpoint(Path(path)).get("hyper_parameters", {})
        if "_class_path" in values:
            configured = [value.as_dict() for _, value, _ in walk(self.config) if isinstance(value, Namespace)]
            with mistakes():
                check_hyper_parameters(values, configured)
            super()._parse_ckpt_path()

    def option_names(self) -> set[str]:
        """Return the dotted names of the options of the command."""
        (parser,) = command_parsers(self).values()
        return option_names(parser)

    def instantiate_classes(self) -> None:
        with mistakes():
            check_configuration(self.config)
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise MistakeError(rewrite_parser_error(str(error), self.option_names(), class_names())) from error

    def after_instantiate_classes(self) -> None:
        # The first process writes; fast_dev_run writes nothing.
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            require_writable(self.trainer.log_dir or self.trainer.default_root_dir)


def of_one_command(command: str) -> type[ShortErrorsCLI]:
    """Return the command line with a parser of one command alone: parsers of all take seconds to build."""

    class OneCommandCLI(ShortErrorsCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: ShortErrorsCLI.subcommands()[command]}

    return OneCommandCLI


def named_files(args: list[str]) -> list[str]:
    """Return the configurations that the words of a command name."""
    return [value for key, value in pairwise(args) if key in ("--config", "-c")]


@contextmanager
def mistakes() -> Iterator[None]:
    """Raise errors of the block as mistakes of the user."""
    try:
        yield
    except ValueError as error:
        raise MistakeError(str(error)) from error


def class_names() -> set[str]:
    """Return the names of the classes that a configuration may use without their path."""
    networks = {name for name, value in vars(interpretable_training.models).items() if isinstance(value, type)}
    return networks | {cls.__name__ for base in NAMED for cls in subclasses(base)}


def subclasses(base: type[Any]) -> set[type[Any]]:
    """Return a class and all that derive from it."""
    return {base} | {derived for cls in base.__subclasses__() for derived in subclasses(cls)}
