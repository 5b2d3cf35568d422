"""The report's page in a real Chromium without a window: what it shows, what it draws, what it never does."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from support.hostile_texts import HOSTILE
from support.synthetic_journal import write_journal
from torch.testing import assert_close

from interpretable_training.report.comparison import compare_runs
from interpretable_training.report.comparison_page import write_comparison
from interpretable_training.report.journal import Journal, read_journal
from interpretable_training.report.page import write_report
from interpretable_training.visual import overlay

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# Waits for the page, does `act`, waits again, and leaves what `tell` returns in the page.
PROBE = """<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
  while (document.documentElement.dataset.ready !== "yes") await wait(20);
  ACT; await wait(300);
  const told = document.createElement("pre");
  told.id = "probe";
  told.textContent = JSON.stringify(TELL);
  document.body.append(told);
})();
</script></body>"""
PIXELS = "[...document.querySelectorAll('#panel .film canvas')].map((c) => [c.width, c.height, ...sampled(c)])"
SAMPLED = """<script>
function sampled(c) { return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]; }
</script>"""


def chromium(*options):
    """Run it; returns what it wrote, and the messages of the page's console."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--hide-scrollbars", "--virtual-time-budget=8000", *map(str, options)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    errors = done.stderr.decode(errors="replace")
    return done.stdout.decode(), [line for line in errors.splitlines() if "CONSOLE" in line]


def dumped(path, folder, place=""):
    """The page's elements after it has run, without its data, and the console's messages."""
    text, console = chromium(f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{path.as_uri()}{place}")
    shown = re.sub(r'<script type="application/json" id="data">.*?</script>', "", text, flags=re.DOTALL)
    return shown, console


def probed(path, tmp_path, tell, act="", place=""):
    """What an expression says within the page, in a copy that lets the probe run."""
    copy = tmp_path / "probed.html"
    probe = SAMPLED + PROBE.replace("ACT", act).replace("TELL", tell)
    copy.write_text(POLICY.sub("", path.read_text()).replace("</body>", probe))
    text, console = dumped(copy, tmp_path, place)
    assert not console
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', text, re.DOTALL)[1]))


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    write_journal(folder / "explanations", count=8)
    return write_report(folder / "explanations", folder / "report.html")


def test_browser_shows_every_part_without_errors(rich, tmp_path):
    text, console = dumped(rich, tmp_path)
    assert console == []
    assert 'data-ready="yes"' in text
    results = re.findall(r'<section id="(\w+)"', text)
    wanted = [
        "glance",
        "panel",
        "classes",
        "metrics",
        "training",
        "final",
        "hardest",
        "drift",
        "randomization",
        "failures",
    ]
    assert results == [*wanted, "dropped", "cost", "probe", "settings"]
    raised = read_journal(rich.parent / "explanations").of("alarm")
    assert f"Raised {len(raised)} times, first at epoch {raised[0]['epoch']}. " in text
    assert text.count("<canvas") >= 8 + 4 + 12  # panel, hardest, the first look and the last
    assert text.count('class="curve"') >= 20
    assert "epoch 11 · step 1128" in text


def test_browser_slider_keys_and_address_change_the_images(rich, tmp_path):
    slide = "const s = document.querySelector('#panel input'); s.value = 2; s.dispatchEvent(new Event('input'))"
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }))"
    tell = f"[document.querySelector('#panel output').value, location.hash, {PIXELS}]"
    last = probed(rich, tmp_path, tell)
    slid = probed(rich, tmp_path, tell, slide)
    addressed = probed(rich, tmp_path, tell, place="#event=2")
    pressed = probed(rich, tmp_path, tell, press, place="#event=3")
    other = probed(rich, tmp_path, tell, place="#event=2&method=layercam")
    assert [printed[0].split(" · ")[0] for printed in (last, slid, addressed, pressed, other)] == [
        "epoch 11",
        *["epoch 2"] * 4,
    ]
    assert "event=2" in slid[1]  # so that a moment has an address
    assert len(last[2]) == 8
    assert all(a != b for a, b in zip(last[2], slid[2]))
    assert slid[2] == addressed[2] == pressed[2]
    assert all(a != b for a, b in zip(other[2], slid[2]))


@pytest.mark.parametrize("scale", ["image", "run"])
def test_browser_draws_the_same_as_overlay(tmp_path, scale):
    """Small maps and pictures, so that nothing is averaged or compressed; the page adds rounding of the levels."""
    generator = torch.Generator().manual_seed(0)
    journal = Journal(tmp_path / "explanations")
    pictures = torch.rand(3, 3, 40, 24, generator=generator).mul(255).round() / 255
    maps = torch.rand(2, 3, 5, 3, generator=generator) * torch.tensor([1.0, 7.0])[:, None, None, None] - 0.3
    for index, picture in enumerate(pictures):
        journal.save_image(str(index), picture)
    for epoch in range(2):
        file, ends = journal.save_maps(f"m{epoch}", maps[epoch])
        rows = [{"id": str(i), "lo": lo, "hi": hi} for i, (lo, hi) in enumerate(ends)]
        facts = {"group": "panel", "method": "m", "view": "pred", "file": file, "h": 5, "w": 3, "rows": rows}
        journal.write("maps", epoch=epoch, step=epoch, **facts)
    path = write_report(journal.folder, tmp_path / "report.html")
    shown = torch.tensor(probed(path, tmp_path, PIXELS, place=f"#event=0&scale={scale}"))
    assert shown[:, :2].tolist() == [[24, 40]] * 3
    lines = read_journal(journal.folder).of("maps")
    own, whole = (
        torch.tensor([[r["lo"], r["hi"]] for line in some for r in line["rows"]]) for some in (lines[:1], lines)
    )
    ends = own if scale == "image" else torch.stack([whole[:, 0].amin(), whole[:, 1].amax()])
    clipped = maps[0].clamp(own[:, 0, None, None], own[:, 1, None, None])
    large = torch.nn.functional.interpolate(clipped[:, None], (40, 24), mode="bilinear")[:, 0]
    expected = overlay(pictures, large, scale=ends)
    assert_close(shown[:, 2:].view(3, 40, 24, 4)[..., :3].float(), expected.float(), atol=6, rtol=0)


def test_browser_shows_hostile_texts_as_text(tmp_path):
    methods = {HOSTILE[0]: 0.0, HOSTILE[1]: 0.3}
    write_journal(tmp_path / "explanations", epochs=3, count=12, class_names=HOSTILE, methods=methods)
    path = write_report(tmp_path / "explanations", tmp_path / "report.html")
    text, console = dumped(path, tmp_path)
    assert console == []
    bare = tmp_path / "bare.html"
    bare.write_text(POLICY.sub("", path.read_text()))  # the names are harmless without the policy too
    for shown in (text, dumped(bare, tmp_path)[0]):
        assert "<title>Classifier" in shown
        assert "<img" not in shown
        assert "<b>bold" not in shown
        assert 'data-ready="yes"' in shown
    tell = "[[...document.querySelectorAll('.chips li bdi')].map((e) => e.textContent), document.images.length, "
    tell += "document.documentElement.scrollWidth <= window.innerWidth]"
    chips, images, fits = probed(path, tmp_path, tell)
    assert chips == [*HOSTILE[:-1], HOSTILE[-1].replace("\ud800", "?")]  # half a character is none
    assert images == 0
    assert fits  # 300 characters do not widen the page


def test_browser_shows_single_parts_without_errors(tmp_path):
    for name in ("values", "training", "maps", "alarm", "run"):
        folder = tmp_path / name
        write_journal(folder / "explanations", epochs=2, count=6)
        lines = (folder / "explanations" / "journal.jsonl").read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["kind"] == name]
        (folder / "explanations" / "journal.jsonl").write_text("\n".join(kept) + "\n")
        text, console = dumped(write_report(folder / "explanations", folder / "report.html"), folder)
        assert console == []
        assert 'data-ready="yes"' in text


def test_browser_image_details_show_methods_and_drift(rich, tmp_path):
    tell = "[document.getElementById('detail').open, document.querySelectorAll('#detail canvas').length, "
    tell += "[...document.querySelectorAll('#detail .name')].map((e) => e.textContent)]"
    opened, maps, titles = probed(rich, tmp_path, tell, "document.querySelector('#panel .shot').click()")
    assert (opened, maps) == (True, 2)
    assert "similarity to the previous" in titles
    assert "probability of the explained class" in titles


def test_browser_draws_light_dark_and_narrow_pages(rich, tmp_path):
    seen = {}
    dark = "--blink-settings=preferredColorScheme=0"
    for name, size, more in (("light", "1280,1600", []), ("dark", "1280,1600", [dark]), ("narrow", "500,1600", [])):
        file = tmp_path / f"{name}.png"
        _, console = chromium(
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={file}",
            f"--window-size={size}",
            *more,
            f"{rich.as_uri()}#event=8",
        )
        assert console == []
        with Image.open(file) as picture:
            seen[name] = np.asarray(picture.convert("L"), dtype=float)
    assert seen["light"][:, :10].mean() > 230
    assert seen["dark"][:, :10].mean() < 40
    assert seen["narrow"].shape[1] == 500
    assert all(picture[200:1500].std() > 20 for picture in seen.values())  # something is drawn


def test_browser_shows_the_comparison_of_two_runs(rich, tmp_path):
    write_journal(tmp_path / "other" / "explanations", count=8, epochs=4, methods={"gradcam": 0.6})
    comparison = compare_runs(rich.parent, tmp_path / "other")
    path = write_comparison(comparison, tmp_path / "comparison.html", ["gradcam/moved is too large"])
    text, console = dumped(path, tmp_path)
    assert console == []
    sections = ["moved", "pairs", "metrics", "classes", "panels", "metrics-curves", "training-curves", "drift-curves"]
    assert re.findall(r'<section id="([\w-]+)"', text) == sections
    assert "gradcam/moved is too large" in text
    tell = "[...document.querySelectorAll('#moved canvas')].map((c) => new Set(sampled(c)).size > 9)"
    assert probed(path, tmp_path, tell) == [True] * 24  # 8 images, each with its picture and two maps
