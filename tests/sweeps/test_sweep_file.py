"""Sweep files, and the command lines of their runs: what is read, expanded and refused."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from interpretable_training.cli.configs import config_files
from interpretable_training.sweeps.command import argument_macros, command_line
from interpretable_training.sweeps.file import Halving, read_sweep
from interpretable_training.sweeps.parameters import DISTRIBUTIONS, Choice, Interval

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml"))
METRIC = {"name": "val/loss"}


@pytest.fixture
def read(tmp_path):
    """Reads a sweep of these keys."""

    def run(**keys):
        content = {"program": "train.py", "method": "random", "parameters": {"x": {"values": [1, 2]}}, **keys}
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        return read_sweep(tmp_path / "s.yaml")

    return run


@pytest.fixture
def domain(read):
    """Reads a parameter."""

    def run(method="random", **keys):
        return read(method=method, parameters={"x": keys}).parameters[0].domain

    return run


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"value": None}, Choice((None,))),
        ({"values": [1, "a", [2], {"b": True}]}, Choice((1, "a", [2], {"b": True}))),
        ({"values": [1], "distribution": "categorical"}, Choice((1,))),
        ({"value": 3, "distribution": "constant"}, Choice((3,))),
        ({"min": 1, "max": 5}, Interval(1, 5, q=1)),
        ({"min": 1, "max": 5.0}, Interval(1, 5)),
        ({"min": 1, "max": 5, "distribution": "uniform"}, Interval(1, 5)),
        ({"min": 1, "max": 5, "distribution": "int_uniform"}, Interval(1, 5, q=1)),
        ({"min": 0.1, "max": 10, "distribution": "log_uniform_values"}, Interval(0.1, 10, log=True)),
        ({"min": 0.1, "max": 10, "distribution": "inv_log_uniform_values"}, Interval(0.1, 10, log=True)),
        ({"min": 0, "max": 1, "distribution": "log_uniform"}, Interval(1, math.e, log=True)),
        ({"min": 0, "max": 1, "distribution": "inv_log_uniform"}, Interval(math.exp(-1), 1, log=True)),
        ({"min": 1, "max": 10, "q": 4, "distribution": "q_uniform"}, Interval(4, 8, q=4)),
        ({"min": 0.1, "max": 0.7, "q": 0.1, "distribution": "q_uniform"}, Interval(0.1, 0.7, q=0.1)),
        ({"min": 1, "max": 10, "q": 4, "distribution": "q_log_uniform_values"}, Interval(4, 8, log=True, q=4)),
    ],
    ids=str,
)
def test_parameters_mean_what_they_mean_in_wandb(domain, keys, expected):
    assert domain(**keys) == expected


def test_grid_counts_values_as_wandb_does(domain, read):
    assert domain("grid", min=2, max=4) == Choice((2, 3, 4))
    assert domain("grid", min=2, max=5, q=1.5, distribution="q_uniform") == Choice((2, 3.5))
    parameters = {"a": {"values": [1, 2, 3]}, "b": {"value": 1}, "c": {"min": 0, "max": 1}}
    assert read(method="grid", parameters=parameters).points == 6


def test_nested_parameters_have_a_path(read):
    nested = {"model": {"parameters": {"lr": {"value": 1}, "net": {"parameters": {"width": {"values": [1, 2]}}}}}}
    assert [(p.path, p.name, p.varies) for p in read(parameters=nested).parameters] == [
        (("model", "lr"), "model.lr", False),
        (("model", "net", "width"), "model.net.width", True),
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"min_iter": 3}, Halving(3, 3)),
        ({"min_iter": 3, "eta": 2}, Halving(3, 2)),
        ({"max_iter": 27, "s": 2}, Halving(3, 3, 9)),  # W&B's bands: 27 / 3 and 27 / 9
        ({"max_iter": 10, "s": 5, "eta": 2}, Halving(1, 2, 5)),  # 5, 2, 1 and nothing below 1
    ],
    ids=str,
)
def test_hyperband_has_bands_of_wandb(read, keys, expected):
    assert read(metric=METRIC, early_terminate={"type": "hyperband", **keys}).halving == expected


def test_the_rest_of_a_file(read):
    sweep = read(metric={"name": "a", "goal": "maximize"}, run_cap=7, name="x", project="y", description="z")
    assert (sweep.method, sweep.metric, sweep.maximize, sweep.run_cap, sweep.points) == (
        "random",
        "a",
        True,
        7,
        math.inf,
    )
    assert sweep.command == ("${env}", "${interpreter}", "${program}", "${args}")
    assert not read(metric={"name": "a"}).maximize  # W&B minimizes where nothing is said


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_sweeps_of_repository_can_be_read(path):
    sweep = read_sweep(path)
    assert min(sweep.points, sweep.run_cap or math.inf) < math.inf
    if sweep.program == "interpretable-training":  # else a program of its own
        assert sweep.metric.startswith("val/")
        assert sweep.command[4] in config_files()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "custom"}, "expected a method of ['grid', 'random', 'bayes'], got 'custom'"),
        ({"method": None}, "got None"),
        ({"metrics": []}, "got ['metrics'], which are not known here"),
        ({"scheduler": {}}, "got ['scheduler']"),
        ({"metric": {"name": "a", "target": 1}}, "of 'metric', got ['target']"),
        ({"metric": {"goal": "maximize"}}, "expected a name of the metric"),
        ({"metric": {"name": "a", "goal": "max"}}, "got 'max'"),
        ({"method": "bayes"}, "expected a metric for bayes"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "expected a metric for early_terminate"),
        ({"metric": METRIC, "early_terminate": {"type": "median"}}, "got 'median'"),
        ({"metric": METRIC, "early_terminate": {"type": "hyperband"}}, "expected 'min_iter', or 'max_iter' and 's'"),
        ({"metric": METRIC, "early_terminate": {"type": "hyperband", "max_iter": 9}}, "expected 's' beside 'max_iter'"),
        (
            {"metric": METRIC, "early_terminate": {"type": "hyperband", "min_iter": 0}},
            "from 1 to 4294967295 for 'min_iter', got 0",
        ),
        ({"metric": METRIC, "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1.5}}, "for 'eta', got 1.5"),
        ({"metric": METRIC, "early_terminate": {"type": "hyperband", "min_iter": 1, "strict": True}}, "['strict']"),
        (
            {"metric": METRIC, "early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}},
            "expected max_iter >= eta",
        ),
        ({"run_cap": 10**20}, f"for 'run_cap', got {10**20}; write one."),
        ({"run_cap": 0}, "expected a whole number from 1 to 4294967295 for 'run_cap', got 0"),
        ({"program": None}, "expected the key 'program', got none"),
        ({"program": 3}, "expected a file name for 'program', got 3"),
        ({"command": "python train.py"}, "expected a list of words for 'command', got 'python train.py'"),
        ({"command": []}, "expected a list of words"),
        ({"parameters": None}, "expected names and values below 'parameters', got None"),
        ({"parameters": {}}, "got {}"),
        ({"parameters": {"a b": {"value": 1}}}, "got 'a b'"),
        ({"parameters": {"a": 1}}, "of the parameter 'a', got 1"),
        ({"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 1}}}}}, "['a.b'] more than once"),
        ({"method": "grid", "parameters": {"a": {"min": 0.0, "max": 1.0}}}, "with the method grid, got uniform"),
        ({"method": "grid", "parameters": {"a": {"min": 0, "max": 10**9}}}, "at most 100000 values of 'a' on a grid"),
    ],
    ids=str,
)
def test_wrong_and_unknown_keys_are_named(read, keys, message):
    with pytest.raises(ValueError, match=r"expected .* got") as caught:
        read(**keys)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "expected 'values', 'value', or 'min' and 'max'"),
        ({"min": 1}, "got ['min']"),
        ({"values": []}, "expected a list of 'values'"),
        ({"values": 3}, "expected a list of 'values' for 'x', got 3"),
        ({"values": [1, 1.0]}, "expected different values"),
        ({"value": 1, "values": [1]}, "expected ['value'] for 'x' with constant, got ['value', 'values']"),
        ({"values": [1], "min": 0}, "got ['min', 'values']"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "got ['probabilities'], which are not known"),
        ({"distribution": "normal"}, "got 'normal', which Optuna does not have"),
        ({"distribution": "normal", "mu": 1}, "got ['mu'], which are not known"),
        ({"distribution": "q_beta"}, "got 'q_beta'"),
        ({"min": 1, "max": 1}, "expected min < max for 'x', got 1 and 1"),
        ({"min": "1e-3", "max": 1}, "got '1e-3'; YAML reads 1e-3 as text, write 1.0e-3"),
        ({"min": 0, "max": math.inf}, "expected a number for 'max' of 'x', got inf"),
        ({"min": True, "max": 2}, "got True"),
        ({"min": 0, "max": 1, "q": 0.1, "distribution": "uniform"}, "got ['max', 'min', 'q']"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "expected min > 0"),
        ({"min": 0.5, "max": 2.5, "distribution": "int_uniform"}, "expected whole numbers"),
        ({"min": 1, "max": 2, "q": 0, "distribution": "q_uniform"}, "expected q > 0"),
        ({"min": 1, "max": 2, "q": 5, "distribution": "q_uniform"}, "expected a multiple of q"),
        ({"min": 1, "max": 10**20}, f"expected a number for 'max' of 'x', got {10**20}; write one of at most {2**53}"),
    ],
    ids=str,
)
def test_wrong_parameter_is_named(domain, keys, message):
    with pytest.raises(ValueError, match=r"expected .* got") as caught:
        domain(**keys)
    assert message in str(caught.value)


def test_macros_in_brackets_are_explained(tmp_path):
    (tmp_path / "s.yaml").write_text("program: a\nmethod: grid\ncommand: [${env}, ${args}]\n")
    with pytest.raises(ValueError, match=r"expected a sweep in YAML, got .*on a line each, after a dash"):
        read_sweep(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "\n".join(["x0: &x0 [1, 1]", *(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 9))]),
            "at most",
        ),
        ("parameters: &x {a: {parameters: *x}}", "expected YAML of at most 100000 values"),
        ("[" * 900 + "]" * 900, "expected YAML of at most 50 levels"),
        ("name: é".encode("latin-1"), "expected a sweep in UTF-8, got"),
        ("- 1", "expected keys"),
    ],
)
def test_files_that_are_no_sweep_are_refused(tmp_path, content, message):
    (tmp_path / "s.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"expected .* got") as caught:
        read_sweep(tmp_path / "s.yaml")
    assert message in str(caught.value)


def test_documentation_page_matches_code(tmp_path):
    page = (CONFIGS[0].parents[2] / "docs" / "sweeps.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "s.yaml").write_text(example)
    assert read_sweep(tmp_path / "s.yaml").halving == Halving(2, 2)
    named = set(re.findall(r"\$\{(\w+)\}", page))
    assert named == {*argument_macros({}), "env", "interpreter", "program", "args_json_file"}
    assert re.findall(r"^\| `distribution` \| (.*) \|$", page, re.MULTILINE)[0].split(", ") == DISTRIBUTIONS
    assert {path.name for path in CONFIGS} == set(re.findall(r"^\| `(\w+\.yaml)` \|", page, re.MULTILINE))


VALUES = {
    "lr": 1e-05,
    "model.width": 8,
    "flag": True,
    "off": False,
    "none": None,
    "text": "a b=c",
    "list": [1, "x"],
    "nested": {"a": {"b": 0.5}, "c": False},
    "empty": "",
    "one": 1,
    "zero": 0,
}


@pytest.fixture
def agent(monkeypatch, tmp_path):
    """The command line that W&B's agent runs, without a server."""
    seen = []

    from wandb.wandb_agent import Agent  # takes seconds, which collecting the tests need not wait for

    class Process:
        def __init__(self, command, **_):
            seen.append(command)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them
    monkeypatch.setattr("wandb.wandb_agent.AgentProcess", Process)

    def run(command, values):
        (tmp_path / "wandb" / "sweep-s").mkdir(parents=True, exist_ok=True)
        agent = Agent(api=None, queue=None)
        agent._sweep_command = list(command)
        args = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"run_id": "r", "program": "train.py", "args": args})
        return [sys.executable if word == "python" else word for word in seen[-1]]

    return run


def test_forms_of_arguments_equal_those_of_wandb():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # as above

    oracle = create_sweep_command_args({"args": {name: {"value": value} for name, value in VALUES.items()}})
    oracle.pop("args_dict")  # is no list of words
    assert argument_macros(VALUES) == oracle


@pytest.mark.parametrize(
    "command",
    [
        ["${env}", "${interpreter}", "${program}", "${args}"],
        ["${env}", "FOO=1", "torchrun", "--nproc", 2, "${program}", "fit", "${args_no_hyphens}", "${args_json}"],
        ["${interpreter}", "-m", "${envvar:MODULE}", "--x=${envvar:MODULE}/${envvar:OTHER}", "${args_no_equals}"],
        ["${program}", "${args_no_boolean_flags}", "${args_append_hydra}", "${args_override_hydra}"],
        ["${program}", "--config", "${args_json_file}", "hydra.dir=${now}"],
    ],
    ids=lambda command: command[-1],
)
def test_command_lines_are_those_of_the_agent(agent, monkeypatch, tmp_path, command):
    monkeypatch.setenv("MODULE", "package.train")
    monkeypatch.setenv("OTHER", "b c")
    json_file = tmp_path / "wandb/sweep-s/config-r.json"
    assert command_line(command, "train.py", VALUES, json_file) == agent(command, VALUES)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${arg}", r"expected a macro of .*, got '\$\{arg\}'"),
        ("--config=${args_json_file}", "as a separate word, got '--config="),
        ("${envvar:NOT_SET_ANYWHERE}", "expected the environment variable 'NOT_SET_ANYWHERE', .* got none"),
    ],
)
def test_words_that_agent_ignores_are_refused(word, message):
    with pytest.raises(ValueError, match=message):
        command_line([word], "", {}, Path())


REPOSITORY = Path(__file__).parents[2]
AT_HAND = {  # the same experiment where nothing has to be downloaded
    "guided_gradient_cifar100": "guided_gradient_digits",
    "ca_stream": "ca_stream_shapes",
}
SMALL = ["--trainer.max_epochs=1", "--data.image_size=16", "--trainer.accelerator=cpu"]
SMALL += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
FEW = ["--data.n_train=12", "--data.n_val=12"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "training_methods"], ids=lambda p: p.stem)
def test_agent_runs_sweeps_of_repository(agent, monkeypatch, tmp_path, path):
    import torch

    from interpretable_training.models import TinyCNN
    from interpretable_training.sweeps._compat import wandb_rows
    from interpretable_training.sweeps.file import read_sweep
    from interpretable_training.sweeps.study import SweepStudy

    sweep = read_sweep(path)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "runs" / "ca_stream").mkdir(parents=True)
    torch.save(TinyCNN(6).state_dict(), tmp_path / "runs" / "ca_stream" / "tiny_cnn.pt")
    study = SweepStudy(sweep, seed=0)
    values = study.values(study.next(1))
    words = agent([AT_HAND.get(word, word) for word in sweep.command], values)
    words += SMALL + ([] if "digits" in " ".join(words) else FEW)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    (file,) = (tmp_path / "runs").glob("wandb/offline-run-*-r/*.wandb")
    assert any(sweep.metric in row for row, _ in wandb_rows(file))  # where W&B finds it
