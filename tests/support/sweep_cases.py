"""Sweeps of a program that takes milliseconds, for the tests of the command."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from interpretable_training.cli import main

# Appends a line to `diary` when it starts and when it ends, and writes its metric as often as asked.
PROGRAM = """
import json, os, signal, subprocess, sys, time

args = dict(word[2:].split("=", 1) for word in sys.argv[1:])
x = float(args["x"])

def note(word):
    with open("diary", "a") as file:
        file.write(f"{word} {args['x']} {os.getpid()}\\n")

note("start")
print("x is", x)

def be_stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

if args.get("stubborn") == "program":
    be_stubborn()
if args.get("fails") == args["x"] and not os.path.exists("mended"):
    sys.exit("boom")
while args.get("blocks_after") and not os.path.exists("go"):
    if open("diary").read().count("end") < int(args["blocks_after"]):
        break
    time.sleep(0.02)
for _ in range(int(args.get("steps", 1))):
    with open(os.environ["INTERPRETABLE_TRAINING_SWEEP_FILE"], "a") as file:
        file.write(json.dumps({"loss": (x - 2) ** 2, "x": x}) + "\\n")
    time.sleep(float(args.get("wait", 0)))
if args.get("waits_with_child") and x:
    child = subprocess.Popen(["sleep", "60"], preexec_fn=be_stubborn if args.get("stubborn") == "child" else None)
    note(f"child {child.pid}")
    child.wait()
note("end")
"""


def write_sweep(folder, **keys):
    """A sweep file and its program in a folder."""
    (folder / "program.py").write_text(PROGRAM)
    sweep = {"program": "program.py", "method": "grid", "parameters": {"x": {"values": [0, 1, 2, 3]}}, **keys}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return folder / "sweep.yaml"


def sweep(*words):
    """Run the command in this process; return its exit code."""
    try:
        main(["sweep", "sweep.yaml", *map(str, words)])
    except SystemExit as end:
        return end.code
    return 0


def begin_sweep(*words):
    """Run the command in a process of its own, which heeds Ctrl-C also where this one does not."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from interpretable_training.cli import main; main()"
    words = [sys.executable, "-c", code, "sweep", "sweep.yaml", *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def diary():
    """What the programs noted: (word, x, pid)."""
    lines = [line.split() for line in Path("diary").read_text().splitlines()]
    return [(" ".join(line[:-2]), float(line[-2]), int(line[-1])) for line in lines]


def ended():
    """The values of x of the programs that came to their end."""
    return sorted(x for word, x, _ in diary() if word == "end")


def wait_for(condition, seconds=60):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def lives(pid):
    """Whether a process is at work."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def table(output="runs/sweeps/sweep"):
    """The rows of runs.csv as mappings."""
    header, *lines = [line.split(",") for line in (Path(output) / "runs.csv").read_text().splitlines()]
    return [dict(zip(header, line)) for line in lines]


def written(number, name="metrics.jsonl", output="runs/sweeps/sweep"):
    """The lines of a file of a run."""
    return [json.loads(line) for line in (Path(output) / f"run_{number:04d}" / name).read_text().splitlines()]
