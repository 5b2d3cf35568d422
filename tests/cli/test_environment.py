"""The variable INTERPRETABLE_TRAINING: nothing without it, callbacks in every Trainer with it."""

import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import lightning as L
import pytest

from interpretable_training.callbacks import ExplanationLogger
from interpretable_training.callbacks.watching.hooks import WatchHooks
from interpretable_training.cli.environment import VARIABLE, callbacks_of_environment

GROUPS = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
OVERLAY = """
trainer:
  callbacks+:
    - class_path: interpretable_training.callbacks.ExplanationLogger
      init_args: {max_images: 5, methods: {layercam: {class_path: interpretable_training.attribution.LayerCAM}}}
"""


def kinds(**options):
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", **options)
    return [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, WatchHooks)]


@pytest.mark.parametrize("group", GROUPS)
def test_both_packages_find_the_function(group):
    (entry,) = (entry for entry in entry_points(group=group) if entry.name == "interpretable-training")
    assert entry.load() is callbacks_of_environment


def test_trainers_get_callbacks_only_with_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert kinds() == []
    monkeypatch.setenv(VARIABLE, " ")
    assert kinds() == []
    monkeypatch.setenv(VARIABLE, "watch")
    assert kinds() == ["ExplanationLogger", "InterpretabilityMetrics", "ExplanationDrift"]
    own = ExplanationLogger(max_images=3, hardest=1)
    assert kinds(callbacks=[own]).count("ExplanationLogger") == 2


@pytest.mark.parametrize("content", [OVERLAY, OVERLAY.replace("trainer:\n", ""), OVERLAY.partition("callbacks+:\n")[2]])
def test_a_file_names_the_callbacks(tmp_path, monkeypatch, content):
    file = tmp_path / "watch.yaml"
    file.write_text(textwrap.dedent(content))
    monkeypatch.setenv(VARIABLE, str(file))
    (callback,) = callbacks_of_environment()
    assert (callback.n, list(callback.methods)) == (5, ["layercam"])


def test_other_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "wach")
    with pytest.raises(ValueError, match="expected INTERPRETABLE_TRAINING to be 'watch' or the path"):
        kinds()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(FileNotFoundError, match="to name a file that exists"):
        callbacks_of_environment()
    (tmp_path / "text.yaml").write_text("callbacks: 3")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "text.yaml"))
    with pytest.raises(ValueError, match="expected a list of callbacks in"):
        callbacks_of_environment()


def test_without_the_variable_it_costs_less_than_20_ms(monkeypatch):
    """Of processor time, which other processes do not change."""
    monkeypatch.delenv(VARIABLE, raising=False)
    code = """
        import sys, time
        from importlib.metadata import entry_points
        entries = {group: [*entry_points(group=group)] for group in %r}
        start = time.process_time()
        print([entry.load()() for group in entries.values() for entry in group if "interpretable" in entry.name])
        print(time.process_time() - start)
        print({"torch", "lightning", "numpy", "interpretable_training.callbacks"} & {*sys.modules})
    """
    words = [sys.executable, "-c", textwrap.dedent(code % (GROUPS,))]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed[0] == "[[], []]"
    assert float(printed[1]) < 0.02
    assert printed[2] == "set()"
