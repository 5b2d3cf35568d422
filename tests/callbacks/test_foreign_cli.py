"""Every option of every public callback works in another project's LightningCLI, from YAML and the command line."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import lightning as L
import pytest
import yaml
from support.families import few

from interpretable_training import callbacks
from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import Budget
from interpretable_training.metrics import AverageDrop, ParameterRandomization
from interpretable_training.regularization import GuidedGradientRegularizer, SwapBackgrounds

PROJECT = Path(__file__).parents[1] / "support" / "foreign_options.py"
ROOM = "interpretable_training"
REGULARIZER = f"{ROOM}.regularization.GuidedGradientRegularizer"
FAST = ["ExplanationLogger", "BackgroundSwap"]  # from words in the default suite; each takes half a second
PUBLIC = [name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), L.Callback)]

TEST = {"stages": 1, "similarity": ["ssim"]}

# Option -> what stands in YAML, and what the object gets; "Callback.option" where a name means two things.
VALUES = {
    "methods": ({"cam": {"class_path": f"{ROOM}.attribution.GradCAM", "init_args": {"layer": "x"}}}, None),
    "metrics": ({"drop": {"class_path": f"{ROOM}.metrics.AverageDrop"}}, None),
    "max_images": (3, 3),
    "images": ([3, 17], [3, 17]),
    "every_n_epochs": (2, 2),
    "every_n_steps": (5, 5),
    "stages": (["fit", "validate"], ["fit", "validate"]),
    "on_error": ("raise", "raise"),
    "budget": ({"share": 0.05, "megabytes": 20.0}, Budget(share=0.05, megabytes=20.0)),
    "network": ("encoder", "encoder"),
    "output": ("scores", "scores"),
    "image_key": ("photo", "photo"),
    "label_key": (1, 1),
    "class_names": (["cat", "dog"], ["cat", "dog"]),
    "mean": ([0.5, 0.4], [0.5, 0.4]),
    "std": ([0.2, 0.3], [0.2, 0.3]),
    "seed": (7, 7),
    "task": ("embedding", "embedding"),
    "channels": ([3, 2, 1], [3, 2, 1]),
    "target": ("least", "least"),
    "ExplanationLogger.output": (1, 1),
    "ExplanationLogger.target": (3, 3),
    "GuidedGradientRegularization.target": ("kind", "kind"),
    "hardest": (1, 1),
    "scale": ("run", "run"),
    "table": (False, False),
    "controls": (True, True),
    "chunk_size": (2, 2),
    "monitor": ("val/loss", "val/loss"),
    "mode": ("max", "max"),
    "alike": (0.9, 0.9),
    "outside": (0.7, 0.7),
    "border": (0.5, 0.5),
    "drift": (0.3, 0.3),
    "test": ({"class_path": f"{ROOM}.metrics.ParameterRandomization", "init_args": TEST}, None),
    "weights": ({"val/accuracy": 1.0}, {"val/accuracy": 1.0}),
    "name": ("sum", "sum"),
    "regularizer": (
        {"class_path": f"{ROOM}.regularization.GuidedGradientRegularizer", "init_args": {"weight": 0.5}},
        None,
    ),
    "swap": ({"class_path": f"{ROOM}.regularization.SwapBackgrounds", "init_args": {"share": 0.3}}, None),
    "criterion": (None, None),  # a function, which files do not name
    "loss": ("l1", "l1"),
    "region": ("not_here", "not_here"),
    "method": ({"class_path": f"{ROOM}.attribution.GradCAM", "init_args": {"layer": "x"}}, None),
    "weight": (0.5, 0.5),
    "share": (0.25, 0.25),
    "start_step": (3, 3),
    "warmup_steps": (4, 4),
}
OBJECTS = {
    "methods": {"cam": GradCAM("x")},
    "metrics": {"drop": AverageDrop()},
    "test": ParameterRandomization(**TEST),
    "regularizer": GuidedGradientRegularizer(weight=0.5),
    "method": GradCAM("x"),
    "swap": SwapBackgrounds(share=0.3),
}


def values_of(name):
    """YAML value and expected object of each option of a callback; a new option without a value fails here."""
    options = [option for option in inspect.signature(getattr(callbacks, name)).parameters if option != "self"]
    actual = {option: VALUES.get(f"{name}.{option}", VALUES.get(option)) for option in options}
    missing = [option for option, value in actual.items() if value is None]
    assert not missing, f"add values of {missing} of {name} to this test"
    return actual


def words_of(name):
    words = [f"--trainer.callbacks+={ROOM}.callbacks.{name}"]
    for option, (value, _) in values_of(name).items():
        words.append(f"--trainer.callbacks.{option}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def yaml_of(name):
    args = {option: value for option, (value, _) in values_of(name).items()}
    return {"class_path": f"{ROOM}.callbacks.{name}", "init_args": args}


QUIET = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]


@pytest.fixture(scope="module")
def built(tmp_path_factory, request):
    """Return the callbacks that each command builds in the other project, in one process."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(PROJECT, folder / "project.py")
    (folder / "model.yaml").write_text("model: Classifier\n")
    ours = {"class_path": f"{ROOM}.callbacks.ExplanationLogger", "init_args": {"max_images": 3}}
    (folder / "watch.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [ours]}}))
    model = ["--model=Classifier"]
    named = PUBLIC if request.config.option.markexpr != "not slow" else FAST
    commands = {(name, "words"): [*QUIET, *model, *words_of(name)] for name in named}
    (folder / "all.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [*map(yaml_of, PUBLIC)]}}))
    one, two, every = (f"--config={folder / name}.yaml" for name in ("model", "watch", "all"))
    commands["all", "YAML"] = [*QUIET, *model, every]
    commands |= {("order", "model first"): [*QUIET, one, two], ("order", "callbacks first"): [*QUIET, two, one]}
    misspelt = f"--trainer.callbacks+={ROOM}.callbacks.ExplanationLogger", "--trainer.callbacks.max_imgs=4"
    commands["misspelt", "words"] = [*QUIET, *model, *misspelt]
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "project.py", "commands.json", "results.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(commands, json.loads((folder / "results.json").read_text())))


WAYS = [(name, way) for way in ("YAML", "words") for name in PUBLIC]


@pytest.mark.parametrize("case", few(WAYS, *[case for case in WAYS if "YAML" in case or case[0] in FAST]), ids="-".join)
def test_every_option_reaches_the_callback(built, case):
    name, way = case
    expected = {option: OBJECTS.get(option, value) for option, (_, value) in values_of(name).items()}
    result = built[name if way == "words" else "all", way]
    assert result != "refused"
    assert result["callbacks"][name] == {option: repr(value) for option, value in expected.items()}


@pytest.mark.parametrize("order", ["model first", "callbacks first"])
def test_class_name_of_another_project_stays_its_own(built, order):
    """Our callbacks register no LightningModule, so that `model: Classifier` has one meaning."""
    assert built["order", order]["model"] == "__main__.Classifier"
    assert built["order", order]["callbacks"]["ExplanationLogger"]["max_images"] == "3"


def test_misspelt_option_is_refused(built):
    assert built["misspelt", "words"] == "refused"


def test_signatures_show_all_options():
    for name in PUBLIC:
        kinds = {p.kind for p in inspect.signature(getattr(callbacks, name)).parameters.values()}
        assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}, name


def test_numbers_come_before_texts_in_unions():
    """Python keeps one order of equal unions; with texts first, "1" of a command line is no number for any callback."""
    orders = set()
    for name in PUBLIC:
        for parameter in inspect.signature(getattr(callbacks, name)).parameters.values():
            kinds = get_args(parameter.annotation)
            if int in kinds and str in kinds:
                orders.add(kinds.index(int) < kinds.index(str))
    assert orders == {True}


COMMON = {
    "max_images",
    "images",
    "every_n_epochs",
    "every_n_steps",
    "stages",
    "on_error",
    "budget",
    "network",
    "output",
}
COMMON |= {"image_key", "label_key", "class_names", "mean", "std", "seed", "task", "channels"}
WATCHING = ["ExplanationAlarms", "ExplanationDrift", "ExplanationLogger", "InterpretabilityMetrics", "Watcher"]


@pytest.mark.parametrize("name", WATCHING)
def test_common_options_are_in_every_signature(name):
    assert set(inspect.signature(getattr(callbacks, name)).parameters) >= COMMON


@pytest.mark.slow
def test_importing_callbacks_registers_no_module():
    code = (
        "import lightning as L, interpretable_training.callbacks\n"
        "def below(cls): return [s for c in cls.__subclasses__() for s in (c, *below(c))]\n"
        "found = [*below(L.LightningModule), *below(L.LightningDataModule)]\n"
        "print([c.__module__ for c in found if not c.__module__.startswith('lightning.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
