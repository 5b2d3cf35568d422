"""The pages build as a site without a warning, and the site needs nothing from elsewhere."""

import re
import subprocess
import sys

import pytest
from support import pages

from interpretable_training import attribution, callbacks, metrics

NEEDED = ("mkdocs", "material", "mkdocstrings")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in NEEDED:
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=pages.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_site_fetches_nothing_from_elsewhere(site):
    loading = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*//")
    files = list(site.rglob("*.html"))
    assert len(files) > 20
    assert [file.name for file in files if loading.search(file.read_text())] == []
    styles = "".join(file.read_text() for file in site.rglob("*.css"))
    assert not re.search(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", styles)


@pytest.mark.slow
def test_search_works_without_a_server(site):
    """Pages from the disk read the index as a script, and search it in a frame in place of a worker."""
    assert "guided" in (site / "search" / "search_index.js").read_text()
    assert (site / "assets" / "iframe-worker.js").exists()
    assert all("assets/iframe-worker.js" in page.read_text() for page in (site / "callbacks").glob("*.html"))


@pytest.mark.slow
@pytest.mark.parametrize("room", [attribution, metrics, callbacks], ids=lambda room: room.__name__.rpartition(".")[2])
def test_the_reference_has_every_public_name(site, room):
    page = {"attribution": "methods"}.get(room.__name__.rpartition(".")[2], room.__name__.rpartition(".")[2])
    ids = re.findall(r'id="([\w.]+)"', (site / "reference" / f"{page}.html").read_text())
    documented = {name.rpartition(".")[2] for name in ids}
    assert {*room.__all__} - documented == set()


@pytest.mark.slow
def test_links_to_the_code_are_the_names_of_files(site):
    text = (site / "ca_stream.html").read_text()
    assert "<code>interpretable_training/models/ca_stream.py</code>" in text
    assert not list(site.rglob("*.py"))


def test_every_callback_is_on_a_page():
    text = "".join(page.read_text() for page in (pages.ROOT / "docs" / "callbacks").glob("*.md"))
    assert [name for name in callbacks.__all__ if name != "Watcher" and name not in text] == []


@pytest.mark.parametrize("room", [attribution, metrics], ids=lambda room: room.__name__.rpartition(".")[2])
def test_pages_name_every_method_and_metric_and_their_number(room):
    """A table that misses one is how pages grow old."""
    name = {"attribution": "methods"}.get(room.__name__.rpartition(".")[2], room.__name__.rpartition(".")[2])
    page, readme = (pages.ROOT / "docs" / f"{name}.md").read_text(), (pages.ROOT / "README.md").read_text()
    kinds = [n for n in room.__all__ if n[0].isupper() and isinstance(getattr(room, n), type)]
    other = {"Attribution", "GradientCAM", "Baselines", "Table", "SanityTable", "Restricted"}
    kinds = [kind for kind in kinds if kind not in other]
    assert [kind for kind in kinds if f"`{kind}`" not in page] == []
    assert f"[{len(kinds)} {name}](docs/{name}.md)" in readme
