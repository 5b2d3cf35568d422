"""Texts and private names of jsonargparse, Lightning and torch are those on which cli/_compat.py relies."""

from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.optim import Optimizer

from interpretable_training.cli import _compat

ADVICE = "jsonargparse words this error in another way: change the expressions in cli/_compat.py"


class Size(nn.Module):
    """A module with checked arguments."""

    def __init__(self, width: int, act: nn.Module | None = None):
        super().__init__()
        if width < 0:
            raise ValueError(f"expected a width above 0, got {width}; pass 1.")


@pytest.fixture
def message(tmp_path):
    """Runs a parser on words that it refuses, and returns its error text."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--part", type=nn.Module | None)
    parser.add_argument("--optimizer", type=Callable[[list], Optimizer])
    parser.add_argument("--number", type=float)

    def run(*words):
        with pytest.raises((ArgumentError, ValueError)) as caught:
            parser.instantiate(parser.parse_args(list(words)))
        return str(caught.value)

    return run


PART = f"--part={Size.__module__}.Size"


@pytest.mark.parametrize(
    ("words", "option", "owner"),
    [
        (["--numbr=1"], "--numbr=1", None),
        ([PART, "--part.widht=1"], "widht", f"{Size.__module__}.Size"),
        (["--optimizer=torch.optim.SGD", "--optimizer.rl=1"], "rl", "torch.optim.SGD"),
        (['--optimizer={"class_path": "torch.optim.SGD", "init_args": {"rl": 1}}'], "rl", "torch.optim.SGD"),
    ],
)
def test_unknown_options_are_recognized(message, words, option, owner):
    text = message(*words)
    assert (_compat.unknown_option(text) or "").endswith(option), f"{ADVICE}: {text}"
    assert _compat.owner_of_option(text) == owner, f"{ADVICE}: {text}"


@pytest.mark.parametrize("name", ["Siez", "torch.nn.Siez"])
def test_unknown_classes_are_recognized(message, name):
    text = message(f"--part={name}")
    assert _compat.unknown_class(text) == name, f"{ADVICE}: {text}"
    assert _compat.dotted_key(text) == "part", f"{ADVICE}: {text}"


@pytest.mark.parametrize(
    ("words", "function", "expected"),
    [
        (["--number=lots"], _compat.wrong_value, "Expected a float. Got value: lots"),
        (["--config=/none.yaml"], _compat.missing_file, "/none.yaml"),
        ([PART], _compat.required_arguments, "width"),
        ([PART, "--part.width=-1"], _compat.constructor_error, "expected a width above 0, got -1; pass 1."),
        (["--config={broken.yaml}"], _compat.is_broken_yaml, True),
    ],
)
def test_mistakes_are_recognized(message, tmp_path, words, function, expected):
    (tmp_path / "broken.yaml").write_text("part: [")
    words = [word.replace("{broken.yaml}", str(tmp_path / "broken.yaml")) for word in words]
    text = message(*words)
    assert function(text) == expected, f"{ADVICE}: {text}"


def test_private_names_of_lightning_exist():
    missing = "Lightning's command line has no _parse_ckpt_path: change cli/lightning_commands.py"
    assert "_parse_ckpt_path" in LightningCLI.__init__.__code__.co_names, missing
    assert "_subcommand_parsers" in LightningCLI._add_subcommands.__code__.co_names, (
        "Lightning keeps the parsers of commands elsewhere: change cli/_compat.py"
    )
    parser = ArgumentParser()
    parser.add_argument("--a.b", type=int)
    assert "a.b" in _compat.option_names(parser), "argparse keeps options elsewhere: change cli/_compat.py"


@pytest.mark.parametrize("sides", [(10**6, 10**6), (10**10, 10**10)])
def test_sizes_beyond_memory_are_recognized(sides):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(100, *sides)
    assert _compat.is_too_large(caught.value), f"torch words this error in another way: {caught.value}"
    assert not _compat.is_too_large(RuntimeError("a bug"))
