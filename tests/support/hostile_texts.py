"""Texts of a run that could break a page, a table or a picture."""

HOSTILE = [
    "</script><img src=x onerror=\"document.title='owned'\">",
    "x" * 300,
    "🦊/日本 \"quoted\" 'single'",
    "a/b\\c",
    "<b>bold</b>&amp;<!--",
    "{{script}}\u2028line\u202ertl\ud800",
]
