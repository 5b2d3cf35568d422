"""Pages use one word for one thing and stay short: forbidden words, and a limit for all pages together."""

import re

import pytest
from support.pages import PAGES, ROOT, name_of

MOST_WORDS = 20_000  # in docs/ and docs/callbacks/, tables included, blocks of code not
FORBIDDEN = {  # a pattern of whole words: what to write instead
    "look(s|ed|ing)?": "map, explanation step, or what the program does",
    "scene(ry)?": "run context",
    "thrift": "budget",
    "dearest|restless": "cost as a ratio to a forward pass, noisy",
    "tells?|told|hears?|heard|knows|forgets?": "log, store, return, detect",
    "whose": "a second sentence",
    "not tried|nothing of this": "not tested",
    "short of memory": "memory-bound",
    "what (is|was) found": "start-up report, or the thing itself",
    "said once|warned of": "logged once, triggers a warning",
    "n_images": "max_images",
}
OURS = [page for page in PAGES if page.name == "README.md" or ROOT / "docs" in page.parents]


def without_code(text):
    return re.sub(r"^```.*?^```", " ", text, flags=re.M | re.S)


def prose(text):
    """Keep what readers read: no code, comments, addresses of links, or quotes of error messages."""
    text = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", " ", without_code(text), flags=re.S)
    return " ".join(line for line in text.splitlines() if not line.startswith("> "))


def forbidden(text):
    """Return each forbidden word of a page with its replacement."""
    hits = {word: re.search(rf"\b(?:{word})\b", prose(text), re.IGNORECASE) for word in FORBIDDEN}
    return [f"{match[0]}: write {FORBIDDEN[word]}" for word, match in hits.items() if match]


def number_of_words(text):
    """Count what has a letter, outside of blocks of code."""
    return sum(bool(re.search(r"[A-Za-z]", word)) for word in without_code(text).split())


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in OURS])
def test_pages_have_no_forbidden_words(page):
    assert forbidden(page.read_text()) == []


def test_forbidden_words_are_detected_in_prose_only():
    assert forbidden("It Looks\nat a map, not\ntried.") == [
        "Looks: write map, explanation step, or what the program does",
        "not tried: write not tested",
    ]
    assert forbidden("`look` outlook [a](look.md)\n> told\n```\nscene\n```\n<!-- whose -->") == []


def test_all_pages_together_are_short():
    folders = (ROOT / "docs", ROOT / "docs" / "callbacks")
    pages = [page for page in OURS if page.parent in folders and page.name != "ca_stream_networks.md"]  # only names
    numbers = {name_of(page): number_of_words(page.read_text()) for page in pages if page.name != "evidence.md"}
    evidence = (ROOT / "docs" / "evidence.md").read_text()
    numbers["evidence"] = number_of_words(re.sub(r"^\|.*", "", evidence, flags=re.M))  # a command makes its tables
    assert sum(numbers.values()) <= MOST_WORDS, numbers


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_words_are_counted_in_text_and_tables():
    assert number_of_words("# One two\n\n| `three` | 4 |\n|---|---|\n\n```python\nfive\n```\n") == 3
