"""The command `interpretable-training`.

Help, version and mistyped commands need no torch, whose import takes seconds.
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
    "explain": "show which parts of your pictures a trained network uses",
    "compare": "compare two runs by the journals of their watching callbacks, as one HTML page",
    "configs": "list the configurations of the package, or copy them for editing",
    "sweep": "run a sweep file of Weights & Biases on this machine, without an account",
    "demo": "train a small network on images with a shortcut, find the shortcut and repair the network (minutes)",
}
OWN = ("explain", "compare", "configs", "sweep", "demo")  # the others leave their options to Lightning
EXAMPLES = """examples:
  interpretable-training demo
  interpretable-training fit --config baseline --trainer.max_epochs 3
  interpretable-training explain --model runs/shortcut/version_0/checkpoints/....ckpt --images my_pictures
  interpretable-training compare runs/baseline/version_0 runs/baseline/version_1 --limit moved=0.3
  interpretable-training sweep guided_gradient_digits --count 6
  interpretable-training fit --help
  interpretable-training fit --model.help Classifier
"""


class LightParser(argparse.ArgumentParser):
    """Parser whose errors are one paragraph."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. Run {self.prog} --help for what it accepts.\n")


def build_parser() -> LightParser:
    """Return the parser of the commands; those of Lightning leave their options to Lightning."""
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
        commands.add_parser(name, help=text, description=text, add_help=name in OWN, allow_abbrev=False)
    demo = commands.choices["demo"]
    demo.add_argument("--output", default="runs", help="folder for logs and checkpoints (default: runs)")
    demo.add_argument("--epochs", type=int, default=3, help="epochs of training (default: 3)")
    demo.add_argument("--seed", type=int, default=0, help="seed of weights and pictures (default: 0)")
    add_explain(commands.choices["explain"])
    add_compare(commands.choices["compare"])
    configs = commands.choices["configs"]
    configs.add_argument("names", nargs="*", metavar="NAME", help="some of them (default: all)")
    configs.add_argument(
        "--copy", metavar="FOLDER", nargs="?", const="configs", help="copy the files (default: configs)"
    )
    add_sweep(commands.choices["sweep"])
    return parser


def add_explain(explain: argparse.ArgumentParser) -> None:
    """Add the options of the command explain."""
    explain.add_argument(
        "--model", required=True, help="a checkpoint of one of our modules, or the name of a timm model"
    )
    explain.add_argument("--images", required=True, nargs="+", metavar="PATH", help="pictures, or folders of them")
    explain.add_argument("--methods", nargs="+", default=["GradCAM"], metavar="METHOD", help="default: GradCAM")
    explain.add_argument("--target", default="pred", help="pred, least, topk:K, or a class (default: pred)")
    explain.add_argument("--output", default="explanations", help="folder for the results (default: explanations)")
    explain.add_argument("--class-names", nargs="+", metavar="NAME", help="names of the classes, if the model has none")
    explain.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules of yours to import first, whose classes the checkpoint names, such as my_project.networks",
    )
    explain.add_argument("--pretrained", action="store_true", help="download the weights of a timm model")


def add_compare(compare: argparse.ArgumentParser) -> None:
    """Add the options of the command compare."""
    text = "folder of a run with ExplanationLogger or another watching callback, or a checkpoint in it"
    compare.add_argument("before", metavar="RUN_A", help=text)
    compare.add_argument("after", metavar="RUN_B", help="the same; the run that is judged")
    compare.add_argument(
        "--output",
        default="comparison.html",
        metavar="FILE",
        help="page; JSON lies next to it (default: comparison.html)",
    )
    compare.add_argument(
        "--limit",
        dest="limits",
        action="append",
        default=[],
        metavar="NAME=X",
        help="exit code 1 if NAME is worse in RUN_B by more than X: a metric such as energy_on_object or val/accuracy, "
        "or moved, the mean share of the maps that lies elsewhere; may be repeated",
    )


def add_sweep(sweep: argparse.ArgumentParser) -> None:
    """Add the options of the command sweep."""
    sweep.add_argument("file", metavar="FILE", help="sweep in the format of W&B, or its stem in configs")
    sweep.add_argument("--count", type=int, help="runs of the sweep in all, finished ones included")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    sweep.add_argument("--output", help="folder, which several processes may share (default: runs/sweeps/NAME)")
    sweep.add_argument("--seed", type=int, default=0, help="seed of the values that are drawn (default: 0)")
    sweep.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    sweep.add_argument("--dry-run", action="store_true", help="show the commands and run nothing")


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
    from .errors import one_paragraph
    from .integers import check_integers

    if options.command in OWN and rest:
        parser.error(f"{options.command} does not accept {rest}")
    with one_paragraph():
        if options.command in OWN:
            check_integers(options)
            code = run_own(options)
            if code:
                raise SystemExit(code)
            return
        from .configs import with_paths
        from .lightning_commands import run

        run(with_paths(argv))


def run_own(options: argparse.Namespace) -> int:
    """Run a command that is not Lightning's; return its exit code."""
    words = vars(options)
    command = words.pop("command")
    if command == "explain":
        from .explain_pictures import explain_pictures

        explain_pictures(**words)
    elif command == "compare":
        from .compare import compare

        return compare(**words)
    elif command == "configs":
        from .configs import copy_configs, list_configs
        from .errors import print_line

        copies = [] if options.copy is None else copy_configs(options.copy, options.names)
        print_line("\n".join(map(str, copies)) or list_configs(options.names))
    elif command == "sweep":
        from interpretable_training.sweeps.local import SweepOptions, run_sweep

        return run_sweep(SweepOptions(**words))
    else:
        from .demo import demo

        demo(**words)
    return 0
