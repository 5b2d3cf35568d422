"""A journal that was damaged in one place gives a page of all the rest."""

import json
import random
import re
import shutil
from collections import Counter

import pytest
from support.families import few
from support.watched import Module, fit, small_network

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
)
from interpretable_training.metrics import AverageDrop
from interpretable_training.report.journal import FILE, Journal, parse, read_journal
from interpretable_training.report.page import write_report

WRONG = [None, True, -1, 0.5, 10**30, "", "text", "\0", "\ud800", "../../x", [], [[]], {}, {"x": None}, [1], ["x"]]
DAMAGES = 150


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of all callbacks."""
    folder = tmp_path_factory.mktemp("run")
    method = GradCAM()
    callbacks = [
        ExplanationLogger(method, max_images=3, hardest=2),
        InterpretabilityMetrics(method, metrics=AverageDrop(), max_images=4),
        ExplanationDrift(method, max_images=3),
        ExplanationAlarms(method, max_images=3, border=0.01, alike=0.01),
        RandomizationTest(method, max_images=2),
    ]
    fit(folder, callbacks, Module(small_network()), max_epochs=2)
    journal = Journal(folder / "explanations")
    journal.run = read_journal(journal.folder).lines[0]["run"]
    for kind, facts in {"failure": {"callback": "A", "reason": "R"}, "dropped": {"callback": "A", "what": "W"}}.items():
        journal.write(kind, epoch=1, step=8, stage="fit", **facts)
    journal.write("resume", step=8)
    return journal


def places(value, before=()):
    """The keys that lead to each part of a line."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, item in items:
        yield (*before, key)
        yield from places(item, (*before, key))


def changed(text, draw):
    """A line with one part gone or of another type."""
    line = json.loads(text)
    *way, last = draw.choice(list(places(line)))
    part = line
    for key in way:
        part = part[key]
    if draw.random() < 0.4:
        del part[last]
    else:
        part[last] = draw.choice(WRONG)
    return json.dumps(line).encode()


def of_bytes(text, draw):
    """A line with some of its bytes changed, gone or put in."""
    data = bytearray(text)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data))
        kind = draw.choice(["flip", "flip", "gone", "put in", "other"])
        if kind == "flip":
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "gone":
            del data[at : at + draw.choice([1, 1, 30])]
        elif kind == "put in":
            data[at:at] = draw.choice([b"\0", b"\xff", b"\n", b"}", b'"', b"[" * 5000, draw.randbytes(9)])
        else:
            data[at] = draw.randrange(256)
        data = data or bytearray(b"x")
    return bytes(data)


SPELLED = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"9" * 400, b"[" * 100_000, b'{"a":' * 3000]


def of_numbers(text, draw):
    """A line with a number that is none, has no end or is nested without end."""
    numbers = list(re.finditer(rb"(?<=:)-?[\d.]+(?:e-?\d+)?(?=[,}])", text))
    at = draw.choice(numbers)
    return text[: at.start()] + draw.choice(SPELLED) + text[at.end() :]


def damage_picture(folder, draw):
    """One of the pictures that lines name."""
    path = draw.choice(sorted(path for room in ("images", "maps") for path in (folder / room).iterdir()))
    data = bytearray(path.read_bytes())
    kind = draw.choice(["cut off", "flip", "flip", "empty", "foreign", "folder", "huge", "gone"])
    if kind in ("folder", "gone"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        return
    if kind == "cut off":
        data = data[: draw.randrange(len(data))]
    elif kind == "flip":
        for _ in range(draw.choice([1, 5, 40])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "huge":
        data[16:24] = (60_000).to_bytes(4, "big") * 2
    else:
        data = draw.randbytes(len(data)) if kind == "foreign" else b""
    path.write_bytes(data)


def damaged(folder, draw):
    """Damage a run in one or some places."""
    kind = draw.choice(["keys", "keys", "bytes", "bytes", "numbers", "picture"])
    if kind == "picture":
        return damage_picture(folder, draw)
    lines = (folder / FILE).read_bytes().split(b"\n")[:-1]
    for _ in range(draw.choice([1, 1, 3])):
        at = draw.randrange(len(lines))
        lines[at] = {"keys": changed, "bytes": of_bytes, "numbers": of_numbers}[kind](lines[at], draw)
        if kind != "bytes":
            break
    (folder / FILE).write_bytes(b"\n".join(lines) + b"\n")


def data_of(path):
    text = path.read_text()
    assert text.rstrip().endswith("</html>")
    results = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    return json.loads(results, parse_constant=pytest.fail)  # a browser reads no NaN


def frozen(line):
    return json.dumps(line, sort_keys=True)


@pytest.mark.parametrize("seed", few(range(DAMAGES), *range(50)))
def test_a_damaged_journal_gives_a_page_of_all_the_rest(tmp_path, run, seed):
    folder = shutil.copytree(run.folder, tmp_path / "explanations")
    before = [line for line in (folder / FILE).read_bytes().split(b"\n") if line]
    damaged(folder, random.Random(seed))
    page = data_of(write_report(folder, tmp_path / "report.html", run=run.run))
    after = Counter(line for line in (folder / FILE).read_bytes().split(b"\n") if line)
    untouched = Counter(before) & after
    runs, broken = parse(folder / FILE)
    results = Counter(frozen(line) for lines in runs.values() for line in lines)
    assert Counter(frozen(json.loads(line)) for line in untouched.elements()) <= results
    assert broken + results.total() == after.total()
    assert (f"{broken} broken lines" in "; ".join(page["missing"])) == (broken > 0)
    assert len(page["films"]["panel"]["events"]) >= 1


GOOD = {"kind": "image", "time": 1.0, "run": "r", "id": "1", "file": "images/1.png", "label": None}
BAD = {
    "no time": {"time": None},
    "a time as text": {"time": "1"},
    "no label": {"label": ...},
    "a label as text": {"label": "cat"},
    "no file": {"file": ...},
    "a file elsewhere": {"file": "../1.png"},
    "a whole path": {"file": "/etc/passwd"},
    "a run as number": {"run": 1},
    "an epoch as text": {"epoch": "0"},
    "a step without end": {"step": 10**20},
    "a kind as list": {"kind": ["image"]},
    "a resume without step": {"kind": "resume"},
    "a resume to nowhere": {"kind": "resume", "step": None},
    "values as list": {"kind": "values", "values": [1]},
    "a value as text": {"kind": "values", "values": {"x": "1"}},
    "rows as mapping": {"kind": "drift", "method": "m", "rows": {}},
    "rows without name": {"kind": "drift", "method": "m", "rows": [{}]},
    "settings as text": {"kind": "run", "settings": "x"},
}


@pytest.mark.parametrize("case", BAD)
def test_a_line_of_wrong_types_is_skipped_and_counted(tmp_path, case):
    line = {key: value for key, value in {**GOOD, **BAD[case]}.items() if value is not ...}
    (tmp_path / FILE).write_text("\n".join(map(json.dumps, [GOOD, line, GOOD])) + "\n")
    record = read_journal(tmp_path)
    assert len(record.lines) == 2
    assert record.missing == [f"1 broken lines of {tmp_path / FILE}"]


def test_lines_of_a_later_version_are_kept(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({**GOOD, "kind": "of a later version"}) + "\n" + json.dumps(GOOD) + "\n")
    assert [line["kind"] for line in read_journal(tmp_path).lines] == ["of a later version", "image"]
    assert read_journal(tmp_path).missing == []


@pytest.mark.parametrize("folder", ["x" * 300, "loop/loop", "\ud800", "a\0b"])
def test_a_folder_that_cannot_be_is_one_that_is_gone(tmp_path, folder):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    line = {"kind": "continued", "time": 1.0, "run": "r", "step": 3, "folder": folder}
    (tmp_path / FILE).write_text(json.dumps(line) + "\n" + json.dumps(GOOD) + "\n")
    record = read_journal(tmp_path)
    assert record.of("image")
    assert len(record.missing) == 1


def test_a_run_that_is_not_there_is_not_another_one(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(GOOD) + "\n")
    record = read_journal(tmp_path, "another")
    assert record.lines == []
    assert record.missing == [f"1 other runs in {tmp_path}"]
    assert data_of(write_report(tmp_path, tmp_path / "report.html", run="another"))["times"] == []


def test_a_randomization_test_without_a_number_is_undecided(tmp_path):
    journal = Journal(tmp_path)
    row = {"method": "gradcam", "similarity": {"ssim": float("nan")}, "passed": None, "rule": "below 0.5"}
    journal.write("randomization", epoch=0, step=4, stage="fit", rows=[row])
    page = data_of(write_report(tmp_path, tmp_path / "report.html"))
    assert page["missing"] == []
    assert page["randomization"] == [["gradcam", "ssim None", "undecided", "below 0.5"]]
