"""The page on papers has every paper that the code names."""

import re

from support import pages

ADDRESS = re.compile(r"https://(?:arxiv\.org/abs/[\d.]*\d|doi\.org/[\w./]*\w)")


def addresses(text):
    return {*ADDRESS.findall(text)}


def test_every_paper_in_the_code_has_an_entry():
    rooms = ("interpretable_training", "callbacks", "recipes")
    named = {a for room in rooms for path in (pages.ROOT / room).rglob("*.py") for a in addresses(path.read_text())}
    assert len(named) > 30
    assert named - addresses((pages.ROOT / "docs" / "citing.md").read_text()) == set()


def test_entries_have_names_of_their_own():
    keys = re.findall(r"^@\w+\{(\w+),$", (pages.ROOT / "docs" / "citing.md").read_text(), re.MULTILINE)
    assert len(keys) == len({*keys})
