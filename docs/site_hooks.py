"""What the site has beyond the pages as they are.

Links to files outside of docs/, which lead there in the repository, become the names of these files. A comment
`<!-- reference: PACKAGE -->` becomes the docstrings of what the package exports, module by module. Names with hyphens
in tables, such as Grad-CAM, stay on one line.
"""

import importlib
import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
REFERENCE = re.compile(r"<!-- reference: (\S+) -->")
CELL = re.compile(r"<t[dh]\b.*?</t[dh]>", re.DOTALL)
HYPHENATED = re.compile(r"(<[^>]*>)|[\w+./-]{1,24}\w-\w[\w+./-]{0,24}")  # or a tag, which is left as it is


def on_page_markdown(markdown, page, **_):
    """Called by mkdocs with the text of a page."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = LINK.sub(lambda link: shown(link, folder), markdown)
    return REFERENCE.sub(lambda found: reference(found[1]), markdown)


def on_page_content(html, **_):
    """Called by mkdocs with the HTML of a page."""
    return CELL.sub(lambda cell: HYPHENATED.sub(whole, cell[0]), html)


def whole(match):
    """A word that does not break, or a tag as it is."""
    return match[1] or f'<span class="whole">{match[0]}</span>'


def shown(link, folder):
    """A link within the site as it is, any other as the file's name."""
    path = posixpath.normpath(posixpath.join(folder, link[2].split("#")[0]))
    if path.startswith("../"):
        return f"`{path.removeprefix('../')}`"
    return f"`docs/{path}`" if path.endswith((".py", ".ipynb")) else link[0]


def reference(package):
    """For each module of what a package exports: the names, and mkdocstrings' directive for the module."""
    room = importlib.import_module(package)
    modules = {}
    for name in room.__all__:
        modules.setdefault(getattr(getattr(room, name), "__module__", package), []).append(name)
    parts = []
    for module, names in sorted(modules.items(), key=lambda item: item[1][0].lower()):
        options = f"    options:\n      members: [{', '.join(names)}]\n"
        path = module.replace("interpretable_training.callbacks", "callbacks")  # where the files are
        parts.append(f"## {', '.join(names)} {{ #{module} }}\n\n::: {path}\n{options}")
    return "\n".join(parts)
