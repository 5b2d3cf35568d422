"""The private names of Lightning, torch and loggers that the watching callbacks use are still what they were."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from support.watched import BATCHES, Module, fit, small_network
from torch import nn

from interpretable_training.callbacks.watching import _compat

CHANGED = "Lightning or torch changed a private name: adapt callbacks/watching/_compat.py"


class Notes(L.Callback):
    """Calls each function where the callbacks do."""

    def __init__(self, averaging=None):
        self.averaging, self.seen = averaging, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        row = {"step": _compat.logged_step(trainer), "batch": batch_idx}
        row |= {"validates": _compat.validates_now(trainer), "stops": _compat.may_stop(trainer)}
        if batch_idx == 1:
            trainer.should_stop = True
            row["stops"] = _compat.may_stop(trainer)
            trainer.should_stop = False
        self.seen.append(row)

    def on_train_epoch_end(self, trainer, pl_module):
        self.at_end = _compat.logged_step(trainer)

    def on_validation_epoch_start(self, trainer, pl_module):
        self.averages = self.averaging is not None and _compat.averages_weights(self.averaging)


def test_names_of_the_training_loop(tmp_path):
    notes = Notes()
    fit(tmp_path, [notes], max_epochs=1, val_check_interval=2)
    assert [row["step"] for row in notes.seen] == [0, 1, 2, 3], CHANGED  # counted after the hook
    assert notes.at_end == 3, CHANGED  # the step before, as Lightning logs
    assert [row["validates"] for row in notes.seen] == [False, True, False, True], CHANGED
    assert len(notes.seen) == BATCHES


def test_may_stop_waits_for_min_epochs(tmp_path):
    seen = {}
    for min_epochs in (None, 1):
        notes = Notes()
        fit(tmp_path, [notes], max_epochs=2, min_epochs=min_epochs)
        seen[min_epochs] = [row["stops"] for row in notes.seen if row["batch"] == 1]
    assert seen == {None: [True, True], 1: [False, True]}, CHANGED


def test_averaged_weights_are_detected(tmp_path):
    averaging = EMAWeightAveraging(decay=0.5)
    notes = Notes(averaging)
    assert not _compat.averages_weights(averaging), CHANGED
    fit(tmp_path, [averaging, notes], max_epochs=1, num_sanity_val_steps=0)
    assert notes.averages, CHANGED
    assert not _compat.averages_weights(notes)


def test_batch_hooks_of_module_and_data_module_run():
    class Hooked(Module):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch + 1

    assert _compat.before_batch_transfer(Hooked(), torch.zeros(1)) == 1, CHANGED


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: CSVLogger(folder, prefix="team"),
        lambda folder: WandbLogger(prefix="team", save_dir=folder, offline=True),
        lambda folder: TensorBoardLogger(folder, prefix="team"),
    ],
    ids=["CSV", "W&B", "TensorBoard"],
)
def test_prefix_of_loggers_is_read(tmp_path, make):
    assert _compat.key_prefix(make(tmp_path)) == "team", CHANGED


def test_versions_count_writes_to_weights_and_buffers():
    network = nn.Sequential(small_network(), nn.BatchNorm1d(3))
    before = _compat.weight_versions(network)
    assert before == _compat.weight_versions(network), CHANGED
    network.eval()(torch.rand(2, 3, 8, 8))
    assert before == _compat.weight_versions(network), CHANGED
    with torch.no_grad():
        network[0][0].weight.mul_(2)
    after = _compat.weight_versions(network)
    assert after != before, CHANGED
    network.train()(torch.rand(2, 3, 8, 8))
    assert _compat.weight_versions(network) != after, CHANGED
    with torch.inference_mode():
        assert _compat.weight_versions(nn.Linear(1, 1)) == (-1, -1), CHANGED
    _compat.weight_versions(nn.LazyLinear(2))


def test_leaves_of_nested_containers_are_listed():
    assert _compat.tree_leaves({"a": [1, (2, None)], "b": 3}) == [1, 2, None, 3], CHANGED
