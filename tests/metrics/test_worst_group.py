import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader

from interpretable_training.attribution import GradCAM
from interpretable_training.metrics import WorstGroupAccuracy, evaluate

PREDICTED = torch.tensor([0, 1, 1, 0, 1, 1, 0])
TARGET = torch.tensor([0, 1, 0, 0, 1, 0, 1])
GROUP = torch.tensor([0, 0, 0, 2, 2, 5, -1])  # 2 of 3, 2 of 2, 0 of 1, unknown


def updated(rows=slice(None), **options):
    metric = WorstGroupAccuracy(**options)
    metric.update(PREDICTED[rows], TARGET[rows], GROUP[rows])
    return metric


def test_worst_group_by_hand():
    assert updated().compute() == 0
    assert updated(min_images=2).compute() == pytest.approx(2 / 3)
    assert updated(slice(3, 5)).compute() == 1
    a = updated(num_groups=6).accuracies()
    torch.testing.assert_close(a, torch.tensor([2 / 3, torch.nan, 1, torch.nan, torch.nan, 0]), equal_nan=True)
    assert int(updated().n_unknown) == 1


def test_logits_and_classes_are_the_same():
    metric = WorstGroupAccuracy(min_images=2)
    metric.update(nn.functional.one_hot(PREDICTED, 4).float(), TARGET, GROUP)
    assert metric.compute() == updated(min_images=2).compute()


def test_two_halves_are_the_whole():
    metric = updated(slice(0, 4), num_groups=6)
    metric.update(PREDICTED[4:], TARGET[4:], GROUP[4:])
    torch.testing.assert_close(metric.accuracies(), updated(num_groups=6).accuracies(), equal_nan=True)
    merged = updated(slice(0, 4), num_groups=6)
    merged.merge_state(updated(slice(4, None), num_groups=6))
    torch.testing.assert_close(merged.accuracies(), metric.accuracies(), equal_nan=True)


def test_no_group_is_no_number():
    metric = updated(slice(6, 7))
    assert metric.compute().isnan()
    assert updated(min_images=9).compute().isnan()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ((PREDICTED, TARGET, GROUP[:3]), r"expected logits \(B, N\) or classes"),
        ((PREDICTED, TARGET[:, None], GROUP), r"expected logits \(B, N\) or classes"),
        ((PREDICTED, TARGET, GROUP.float()), "whole numbers group .* of torch.float32"),
        ((PREDICTED, TARGET, GROUP + 5), "expected groups below num_groups=6, got 3 images"),
    ],
)
def test_what_does_not_fit_is_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        WorstGroupAccuracy(num_groups=6).update(*facts)


@pytest.mark.parametrize("options", [{"num_groups": 0}, {"min_images": 1.5}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"expected .* as a whole number of at least 1"):
        WorstGroupAccuracy(**options)


def test_it_is_no_metric_of_maps():
    with pytest.raises(TypeError, match=r"expected an object of interpretable_training\.metrics as 'worst_group_acc"):
        evaluate(nn.Flatten(), GradCAM(), WorstGroupAccuracy(), [])


class Plain(L.LightningModule):
    """A module of one's own, which logs the metric as Lightning does."""

    def __init__(self):
        super().__init__()
        self.worst = WorstGroupAccuracy()

    def validation_step(self, batch, batch_idx):
        self.worst.update(batch["predicted"], batch["target"], batch["group"])
        self.log("val/worst", self.worst)


def test_any_lightning_module_can_log_it(tmp_path):
    items = [{"predicted": p, "target": t, "group": g} for p, t, g in zip(PREDICTED[:5], TARGET[:5], GROUP[:5])]
    trainer = L.Trainer(default_root_dir=tmp_path, logger=False, enable_progress_bar=False, accelerator="cpu")
    for _ in range(2):  # reset after each validation
        logged = trainer.validate(Plain(), DataLoader(items, batch_size=2), verbose=False)[0]
        assert logged["val/worst"] == pytest.approx(2 / 3)


def work(rank, place, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    metric = updated(slice(0, 4) if rank == 0 else slice(4, None), num_groups=6)
    actual = metric.compute(), metric.accuracies(), metric.count.clone()  # of both, of both, of this process again
    if rank == 0:
        torch.save(actual, results)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    mp.spawn(work, (str(tmp_path / "meeting"), str(tmp_path / "found.pt")), nprocs=2)
    value, a, count = torch.load(tmp_path / "found.pt")
    whole = updated(num_groups=6)
    assert value == whole.compute()
    torch.testing.assert_close(a, whole.accuracies(), equal_nan=True)
    assert count.tolist() == [3, 0, 1, 0, 0, 0]
