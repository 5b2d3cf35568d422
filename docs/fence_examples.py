"""Show the examples of docstrings as code on the site: an extension of mkdocstrings."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # up to the empty line


class FenceExamples(griffe.Extension):
    """Put each example of a docstring between fences."""

    def on_object(self, *, obj, **_):
        """Called by griffe with each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", obj.docstring.value)
