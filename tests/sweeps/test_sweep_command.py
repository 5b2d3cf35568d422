import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.wandb_agent import Agent

from interpretable_training.sweeps.command import argument_macros, command_line

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


def test_each_form_of_the_arguments_is_that_of_wandb():
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
def test_what_the_agent_would_pass_on_silently_is_refused(word, message):
    with pytest.raises(ValueError, match=message):
        command_line([word], "", {}, Path())


REPOSITORY = Path(__file__).parents[2]
SWEEPS = sorted((REPOSITORY / "configs" / "sweeps").glob("*.yaml"))
AT_HAND = {  # the same experiment where nothing has to be downloaded
    "configs/guided_gradient_cifar100.yaml": "configs/guided_gradient_digits.yaml",
    "configs/ca_stream.yaml": "configs/ca_stream_shapes.yaml",
}
SMALL = ["--trainer.max_epochs=1", "--data.image_size=16", "--trainer.accelerator=cpu"]
SMALL += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
FEW = ["--data.n_train=12", "--data.n_val=12"]


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_agent_runs_the_sweeps_of_this_repository(agent, monkeypatch, tmp_path, path):
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
