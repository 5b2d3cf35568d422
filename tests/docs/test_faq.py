"""What the page on errors quotes is what the code says."""

import ast
import re

import pytest
from support import pages

PAGE = pages.ROOT / "docs" / "faq.md"
QUOTES = re.findall(r"^> (.+)$", PAGE.read_text(), re.MULTILINE)


def text_of(node):
    """A string in the code, with "..." where values are put in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in parts)


@pytest.fixture(scope="module")
def messages():
    """All strings of the package that could be messages."""
    results = set()
    for room in ("interpretable_training", "callbacks"):
        for path in (pages.ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                    results.add(text_of(node))
    return results


def test_faq_quotes_error_texts():
    assert len(QUOTES) > 20


@pytest.mark.parametrize("quote", QUOTES)
def test_faq_quotes_exist_in_the_code(quote, messages):
    parts = [re.escape(part) for part in quote.split("...") if part]
    pattern = re.compile(r"[^\n]*?".join(parts))
    assert any(pattern.search(message) for message in messages)
