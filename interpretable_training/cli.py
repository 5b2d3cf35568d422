"""The command `interpretable-training`.

What needs no training (help, version, a mistyped command) is answered without importing torch, which takes seconds.
"""

import argparse
import difflib
import sys
from typing import NoReturn

from interpretable_training import __version__

COMMANDS = {
    "fit": "train a model",
    "validate": "evaluate a model on the validation split",
    "test": "evaluate a model on the test split",
    "predict": "compute the model's predictions",
    "evaluate": "measure how good a model's explanations are",
    "demo": "train a small network on images with a shortcut, and see whether it fell for it (about a minute)",
}
EXAMPLES = """examples:
  interpretable-training demo
  interpretable-training fit --config configs/baseline.yaml --trainer.max_epochs 3
  interpretable-training fit --help
  interpretable-training fit --model.help Classifier
"""


class LightParser(argparse.ArgumentParser):
    """Answers a mistake with one paragraph."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. Run {self.prog} --help for what it accepts.\n")


def build_parser() -> LightParser:
    """Parser of the commands; those of Lightning leave their options to Lightning."""
    parser = LightParser(
        prog="interpretable-training",
        description="Train image classifiers that explain themselves.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, description=text, add_help=name == "demo", allow_abbrev=False)
    demo = commands.choices["demo"]
    demo.add_argument("--output", default="runs", help="folder for logs and checkpoints (default: runs)")
    demo.add_argument("--epochs", type=int, default=3, help="epochs of training (default: 3)")
    demo.add_argument("--seed", type=int, default=0, help="seed of weights and pictures (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Words after the command's name; by default those of the shell.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        closest = difflib.get_close_matches(argv[0], COMMANDS)
        parser.error(f"expected a command of {[*COMMANDS]}, got {argv[0]!r}; closest: {closest}")
    options, rest = parser.parse_known_args(argv)
    if options.command is None:
        if rest:
            parser.error(f"expected a command before {rest[0]!r}")
        parser.print_help()
        return
    from interpretable_training.paragraphs import one_paragraph  # imports Lightning, like all that follows

    if options.command == "demo":
        if rest:
            parser.error(f"demo does not accept {rest}")
        from interpretable_training.demo import demo

        with one_paragraph():
            demo(options.output, options.epochs, options.seed)
        return
    from interpretable_training.lightning_cli import run

    with one_paragraph():
        run(argv)
