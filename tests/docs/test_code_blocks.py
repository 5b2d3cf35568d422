"""Every block of code in the pages runs or can be read, unless a comment before it says why it cannot.

A page's blocks of Python run one after the other, with the names of `pages.prelude` where the page speaks of "your"
model or data. Commands are parsed, not run.
"""

import inspect
import re
import shlex

import pytest
import yaml
from support import pages
from support.pages import PAGES, ROOT

from interpretable_training import recipes
from interpretable_training.cli.main import OWN, build_parser, main

# The first needs data sets on disk (tests/data/test_data_docs.py), the second has a test of its results.
ELSEWHERE = ["docs/data", "docs/time_series"]
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*((?:\S*/)?(?:interpretable-training|python|make)\b.*)$")


def with_blocks(*kinds):
    """The pages that have some, as parameters."""
    return [pytest.param(page, id=pages.name_of(page)) for page in PAGES if pages.blocks(page, *kinds)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run(page, small_training):
    if pages.name_of(page) not in ELSEWHERE:
        pages.run(page, pages.prelude())


@pytest.mark.parametrize("page", with_blocks("yaml"))
def test_yaml_blocks_are_valid(page):
    for _, code in pages.blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(code), dict)


def commands(page):
    """The lines of a page's shell blocks that call something of ours, in words."""
    lines = [line for _, code in pages.blocks(page, "sh", "bash") for line in code.replace("\\\n", " ").splitlines()]
    results = [COMMAND.match(part.strip().removesuffix("&")) for line in lines for part in line.split("&&")]
    return [shlex.split(match[1], comments=True) for match in results if match]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", with_blocks("sh", "bash"))
def test_command_blocks_are_valid(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for program, *words in commands(page):
        check = {"make": check_make, "interpretable-training": check_ours}.get(program.rsplit("/")[-1], check_python)
        check(words)


def check_make(words):
    """Each target exists."""
    assert {*words} <= {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}


def check_python(words):
    """A script of the repository lies where the page says, a recipe has the arguments."""
    if words[:2] == ["-m", "interpretable_training.recipes"]:
        arguments = inspect.signature(getattr(recipes, words[2])).parameters
        assert {word.removeprefix("--") for word in words[3:] if word.startswith("--")} <= {*arguments}
    elif words[0].startswith(("docs/", "benchmarks/", "recipes/")):
        assert (ROOT / words[0]).exists()


def check_ours(words):
    """The command takes its options; configurations are resolved, nothing runs."""
    if words[0] in OWN:
        options, rest = build_parser().parse_known_args(words)
        assert not rest
        assert options.command != "sweep" or not options.file.startswith("configs/") or (ROOT / options.file).exists()
    elif "--help" not in words:
        with pytest.raises(SystemExit) as end:
            main([*words, "--print_config"])
        assert end.value.code in (0, None)


@pytest.mark.parametrize("page", [pytest.param(page, id=pages.name_of(page)) for page in PAGES])
def test_links_have_targets(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = [target.split("#")[0] for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text)]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_skipped_blocks_give_a_reason():
    """Another spelling of the comment would let the block run, or hide it from this test."""
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(re.findall(r"^<!--[^>]*not run", text, re.MULTILINE)) == len(
        [b for b in pages.BLOCK.finditer(text) if b["why"]]
    )
