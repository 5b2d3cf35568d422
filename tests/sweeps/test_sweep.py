"""The command sweep: runs of a program that takes milliseconds, interrupted, repeated, and with damaged studies."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import optuna
import pytest
from PIL import Image
from support.sweep_cases import begin_sweep, diary, ended, lives, sweep, table, wait_for, write_sweep, written
from wandb.sdk.lib.config_util import dict_from_config_file

from interpretable_training.cli import main
from interpretable_training.sweeps.file import read_sweep
from interpretable_training.sweeps.study import SweepStudy

LOSS = {"name": "loss", "goal": "minimize"}
RUNS = Path("runs/sweeps/sweep")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Sweeps run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start_sweep():
    """Runs the command in processes of their own, which do not outlive the test."""
    started = []

    def start(*words):
        started.append(begin_sweep(*words))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def parameters(*values, **constants):
    return {"x": {"values": [*values]}, **{name: {"value": value} for name, value in constants.items()}}


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_grid_is_run_and_told_about(folder, capsys, jobs):
    write_sweep(folder, metric=LOSS)
    assert sweep("--jobs", jobs) == 0
    assert ended() == [0, 1, 2, 3]
    printed = capsys.readouterr().out
    for x in range(4):
        assert re.search(rf"^run \d started    x={x}    runs/sweeps/sweep/run_000\d/log.txt$", printed, re.MULTILINE)
    assert re.search(r"^run \d finished    loss \d    \d+ s    \[4 of 4\]$", printed, re.MULTILINE)
    assert re.search(r"^best: run \d, loss 0, with x=2$", printed, re.MULTILINE)
    assert [float(row["loss"]) for row in table()] == [0, 1, 1, 4]  # the best ones first
    assert all((Path(row["folder"]) / "log.txt").read_text() == f"x is {row['x']}.0\n" for row in table())
    assert Image.open(RUNS / "sweep.png").size[0] > 300


def test_jobs_run_at_the_same_time(folder, start_sweep):
    write_sweep(folder, parameters=parameters(0, 1, blocks_after=0))
    process = start_sweep("--jobs", 2)
    wait_for(lambda: Path("diary").exists() and len(diary()) == 2)  # neither comes to its end
    Path("go").write_text("")
    process.communicate(timeout=60)
    assert ended() == [0, 1]


def test_finished_runs_are_not_repeated(folder, capsys):
    write_sweep(folder, parameters={"x": {"min": 0.0, "max": 1.0}}, method="random")
    assert sweep("--count", 2) == 0
    assert sweep("--count", 2) == 0
    assert len(ended()) == 2
    assert "Going on: 2 of 2 runs exist already, 0 are run again." in capsys.readouterr().out
    assert sweep("--count", 3) == 0  # runs in all
    assert len(ended()) == 3


def test_run_cap_limits_runs(folder):
    write_sweep(folder, parameters={"x": {"min": 0.0, "max": 1.0}}, method="random", run_cap=2)
    assert sweep("--count", 5) == 0
    assert len(ended()) == 2


def test_failed_runs_are_reported_and_others_continue(folder, capsys):
    write_sweep(folder, metric=LOSS, parameters=parameters(0, 1, 2, fails=1))
    assert sweep() == 0
    assert ended() == [0, 2]
    printed = capsys.readouterr().out
    assert re.search(r"ended with exit code 1; the end of \S+/log.txt:\n    x is 1.0\n    boom\n", printed)
    assert "1 of 3 runs failed; --retry-failed runs them again." in printed
    assert [row["state"] for row in table()] == ["finished", "finished", "failed"]
    assert sweep() == 0
    assert ended() == [0, 2]
    Path("mended").write_text("")
    assert sweep("--retry-failed") == 0
    assert ended() == [0, 1, 2]
    assert [row["state"] for row in table()] == ["finished"] * 3


def test_the_exit_code_tells_that_all_failed(folder):
    write_sweep(folder, parameters=parameters(1, fails=1))
    assert sweep() == 1


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"command": ["/no/such/program"]}, "could not be started"),
        ({"command": ["${env}", "no-such-program"]}, "ended with exit code 127"),
        ({"metric": {"name": "lss"}}, "expected a finite 'lss' at its end, got only ['loss', 'x']"),
        ({"metric": LOSS, "command": ["${env}", "true"]}, "expected a finite 'loss' at its end, got nothing"),
        ({"metric": LOSS, "parameters": parameters("nan")}, "expected a finite 'loss' at its end, got nan"),
        ({"command": ["${interpreter}", "-c", "import os; os.kill(os.getpid(), 9)"]}, "ended with signal 9"),
    ],
    ids=str,
)
def test_a_run_without_a_result_is_a_failed_one(folder, capsys, keys, reason):
    write_sweep(folder, **{"parameters": parameters(1), **keys})
    assert sweep() == 1
    assert reason in capsys.readouterr().out
    assert [row["state"] for row in table()] == ["failed"]


def test_a_run_gets_what_an_agent_gives_it(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    program = "import json, os; json.dump(dict(os.environ), open('env.json', 'w'))"
    nested = {"model": {"parameters": {"lr": {"value": 0.5}, "on": {"value": None}}}, "x": {"value": "a"}}
    write_sweep(folder, parameters=nested, command=["${interpreter}", "-c", program, "${args_json_file}"])
    assert sweep() == 0
    env = json.loads(Path("env.json").read_text())
    run = folder / RUNS / "run_0000"
    assert env["WANDB_MODE"] == "offline"
    assert re.fullmatch(r"[0-9a-f]{8}", env["WANDB_SWEEP_ID"])
    assert env["WANDB_RUN_ID"] == f"{env['WANDB_SWEEP_ID']}-0"
    assert env["WANDB_DIR"] == str(run)
    values = {"model": {"lr": 0.5, "on": None}, "x": "a"}
    assert dict_from_config_file(env["WANDB_SWEEP_PARAM_PATH"], must_exist=True) == values
    assert written(0, "parameters.json") == [values]


@pytest.mark.parametrize("stubborn", ["nobody", "program", "child"])
def test_hyperband_ends_runs_and_their_children(folder, capsys, monkeypatch, stubborn):
    """The run with x = 0 comes first; the others are worse, and would wait for a minute."""
    monkeypatch.setattr("interpretable_training.sweeps.run.PATIENCE", 0.3)
    halving = {"type": "hyperband", "min_iter": 1, "eta": 2}
    grid = parameters(0, 10, 20, waits_with_child=True, stubborn=stubborn)
    write_sweep(folder, metric=LOSS, parameters=grid, early_terminate=halving)
    good = next(seed for seed in range(50) if SweepStudy(read_sweep("sweep.yaml"), seed).next(1).params["x"] == 0)
    assert sweep("--seed", good) == 0
    assert [(row["x"], row["state"]) for row in table()] == [
        ("0", "finished"),
        ("10", "stopped early"),
        ("20", "stopped early"),
    ]
    assert "stopped early    loss 64" in capsys.readouterr().out
    assert ended() == [0]
    pids = [int(word.split()[-1]) for word, _, _ in diary() if word.startswith("child")]
    pids += [pid for _, _, pid in diary()]
    assert not any(lives(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_stopped_sweep_ends_runs_and_can_continue(folder, number, start_sweep):
    write_sweep(folder, parameters=parameters(0, 1, 2, 3, blocks_after=2))
    process = start_sweep("--jobs", 2)
    wait_for(lambda: Path("diary").exists() and len([1 for word, *_ in diary() if word == "start"]) == 4)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopping 2 runs. This command continues the sweep:\n" in printed
    assert "  interpretable-training sweep sweep.yaml --jobs 2\n" in printed
    assert "Traceback" not in printed
    assert not any(lives(pid) for _, _, pid in diary())
    assert len(ended()) == 2
    Path("go").write_text("")
    assert sweep() == 0
    assert ended() == [0, 1, 2, 3]


def test_killed_sweep_continues_without_loss_or_repetition(folder, capsys, start_sweep):
    write_sweep(folder, parameters=parameters(0, 1, 2, 3, 4, 5, blocks_after=2))
    process = start_sweep("--jobs", 2)
    wait_for(lambda: Path("diary").exists() and len([1 for word, *_ in diary() if word == "start"]) == 4)
    process.kill()
    process.communicate(timeout=60)
    orphans = [pid for word, x, pid in diary() if x not in ended()]
    assert len(orphans) == 2
    assert all(lives(pid) for pid in orphans)
    (folder / "program.py").write_text((folder / "program.py").read_text().replace('exists("go")', 'exists(".")'))
    assert sweep() == 0  # now that no run waits, but for the two that were left behind
    assert not any(lives(pid) for pid in orphans)  # ended before they were repeated
    assert ended() == [0, 1, 2, 3, 4, 5]
    assert [row["state"] for row in table()] == ["finished"] * 6
    assert "2 are run again" in capsys.readouterr().out


def test_processes_share_sweep(folder, start_sweep):
    write_sweep(folder, parameters=parameters(*range(8), wait=0.05))
    processes = [start_sweep() for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert ended() == [*range(8)]
    started = [len(re.findall("started", text)) for text in printed]
    assert sum(started) == 8
    assert len(table()) == 8


def test_dry_run_prints_commands_and_writes_nothing(folder, capsys):
    write_sweep(folder, command=["python", "${program}", "${args}"])
    assert sweep("--dry-run") == 0
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == [f"python program.py --x={x}" for x in range(4)]
    assert sorted(os.listdir()) == ["program.py", "sweep.yaml"]


@pytest.mark.parametrize(
    ("keys", "words", "message"),
    [
        ({"method": "random"}, [], "expected a number of runs for the method 'random', which never ends, got none"),
        ({"method": "walk"}, [], "got 'walk'"),
        ({"foo": 1}, [], "got ['foo'], which are not known here"),
        ({"command": ["${argh}"]}, [], "got '${argh}' in the command"),
        ({}, ["--jobs", "0"], "expected a whole number from 1 to 4294967295 for '--jobs', got 0"),
        ({}, ["--count", "0"], "expected a whole number from 1 to 4294967295 for '--count', got 0"),
        ({}, ["--foo"], "sweep does not accept ['--foo']"),
        ({}, ["--output", "sweep.yaml/x"], "expected an output folder that can be written"),
    ],
    ids=str,
)
def test_mistake_is_one_paragraph_and_runs_nothing(folder, capsys, keys, words, message):
    write_sweep(folder, **keys)
    assert sweep(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(os.listdir()) == ["program.py", "sweep.yaml"]


def test_missing_file_and_missing_package_are_named(folder, capsys, monkeypatch):
    assert sweep() == 2
    assert "expected a sweep file that exists, got 'sweep.yaml'" in capsys.readouterr().err
    write_sweep(folder)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit):
        main(["sweep", "sweep.yaml"])
    assert "pip install 'interpretable-training[sweep]'" in capsys.readouterr().err


JOURNAL = "runs/sweeps/sweep/study.journal"


def lines_of(data):
    return data.splitlines(True)


def with_line(data, at, change):
    """The file with the fields of one line changed."""
    lines = lines_of(data)
    lines[at] = json.dumps({**json.loads(lines[at]), **change}, separators=(",", ":")).encode() + b"\n"
    return b"".join(lines)


def without(data, name):
    """The file without a field in all lines."""
    lines = [json.loads(line) for line in lines_of(data)]
    return b"".join(
        json.dumps({k: v for k, v in line.items() if k != name}, separators=(",", ":")).encode() + b"\n"
        for line in lines
    )


DAMAGES = {
    "bytes put in": lambda data: data[: len(data) // 2] + b"\xff\xfe\0\x80" + data[len(data) // 2 :],
    "binary": lambda data: bytes(range(256)) * 8,
    "binary without an end of line": lambda data: bytes(range(128, 256)) * 8,
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data + bytes(4096),
    "another's JSON": lambda data: b'{"a": 1}\n{"b": 2}\n',
    "a JSON list": lambda data: b"[1, 2]\n",
    "a text": lambda data: b"not a study\n",
    "a line cut in the middle": lambda data: data[: len(data) // 2] + b"\n" + data[len(data) // 2 :],
    "an unknown code": lambda data: with_line(data, 2, {"op_code": 99}),
    "a code as text": lambda data: with_line(data, 2, {"op_code": "x"}),
    "no trial": lambda data: without(data, "trial_id"),
    "no study": lambda data: without(data, "study_id"),
    "nested without end": lambda data: data + b'{"op_code":' + b"[" * 100_000 + b"\n",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a sweep of four runs that is done."""
    folder = tmp_path_factory.mktemp("done")
    write_sweep(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert sweep() == 0
    return folder


@pytest.fixture
def study(done, tmp_path, monkeypatch):
    """The file of a copy of it."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / JOURNAL


def refused(capfd):
    """The paragraph on stderr."""
    assert sweep() == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert f"expected the study of a sweep in '{JOURNAL}'" in said
    assert "move it away to begin the sweep anew" in said
    assert len(said.strip().splitlines()) == 1
    return said


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_study_is_refused_and_unchanged(study, capfd, kind):
    damaged = DAMAGES[kind](study.read_bytes())
    study.write_bytes(damaged)
    refused(capfd)
    assert study.read_bytes() == damaged


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_study_that_is_no_file_is_refused(study, capfd, kind):
    study.unlink()
    study.mkdir() if kind == "folder" else os.mkfifo(study)
    assert "not a file" in refused(capfd)


@pytest.mark.parametrize(("share", "left"), [(0.0, 0), (0.5, 1), (0.95, 1)], ids=["empty", "half", "nearly all"])
def test_truncated_study_continues_with_its_rest(study, capfd, share, left):
    data = study.read_bytes()
    study.write_bytes(data[: int(share * len(data))])
    assert sweep() == 0
    assert sorted(float(row["x"]) for row in table() if row["state"] == "finished") == [0, 1, 2, 3]


def test_an_optuna_that_is_too_old_is_a_paragraph(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path)
    monkeypatch.setattr(optuna, "__version__", "3.6.1")
    for name in [name for name in sys.modules if name.startswith("interpretable_training.sweeps.study")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna.storages.journal", None)  # which came with version 4
    assert sweep() == 2
    said = capfd.readouterr().err
    assert "expected the package optuna, 4 or newer, for sweeps, got 3.6.1; pip install" in said
    assert "Traceback" not in said
