"""Which images a training sees in which epoch, and how they are changed, is decided by the seed alone."""

from pathlib import Path

import lightning as L
import pytest
import torch
from support.data_trees import folders
from torch import nn
from torch.utils.data import DistributedSampler, RandomSampler

from interpretable_training.data import ImageFolderDataModule, ShapesDataModule
from interpretable_training.data.base import Shuffle, seeded_generator


class Seen(L.LightningModule):
    """Notes the sum of each image of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sums = nn.Linear(1, 2), {}

    def training_step(self, batch, batch_idx):
        images, target = batch
        self.sums.setdefault(self.current_epoch, []).extend(images.double().sum((1, 2, 3)).tolist())
        return nn.functional.cross_entropy(self.layer(images.mean((1, 2, 3))[:, None]), target.clamp(max=1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(folder, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip


def shapes(folder, **options):
    return ShapesDataModule(16, n_train=24, n_val=6, n_test=6, batch_size=5, **options)


def files(folder, **options):
    root = folder / "pictures"
    if not root.exists():
        folders(root / "train", (8, 8))
        folders(root / "val", (2, 2))
    return ImageFolderDataModule(str(root), image_size=16, batch_size=3, **options)


def fit(folder, data, ckpt_path=None, **options):
    module = Seen()
    fitted = trainer(folder, **options)
    fitted.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.sums, fitted


@pytest.mark.parametrize("make", [shapes, files])
def test_workers_and_cut_epochs_do_not_change_training_images(tmp_path, make):
    whole, _ = fit(tmp_path, make(tmp_path), max_epochs=3, enable_checkpointing=False)
    assert whole[0] != whole[1] != whole[2]
    short = {"max_epochs": 3, "enable_checkpointing": False, "limit_train_batches": 2}
    for options in ({}, {"num_workers": 2}):
        data = make(tmp_path, **options)
        seen, _ = fit(tmp_path, data, **short)
        assert seen == {epoch: sums[: 2 * data.batch_size] for epoch, sums in whole.items()}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("make", [shapes, files])
def test_a_resumed_training_sees_what_it_would_have_seen(tmp_path, make, workers):
    whole, _ = fit(tmp_path, make(tmp_path), max_epochs=4, enable_checkpointing=False)
    first, stopped = fit(tmp_path, make(tmp_path, num_workers=workers), max_epochs=2)
    rest, _ = fit(
        tmp_path, make(tmp_path, num_workers=workers), stopped.checkpoint_callback.best_model_path, max_epochs=4
    )
    assert {**first, **rest} == whole


def test_the_orders_are_those_of_torchs_sampler_from_any_epoch_on():
    generator, orders = seeded_generator(3, "train", "order"), []
    for _ in range(4):
        orders.append(list(RandomSampler(range(9), generator=generator)))
    ours = Shuffle(range(9), (3, "train", "order"))
    assert [list(ours) for _ in range(4)] == orders
    assert list(Shuffle(range(9), (3, "train", "order"), epoch=2)) == orders[2]
    ours.set_epoch(1)
    assert list(ours) == orders[1]


def test_loaders_made_anew_in_each_epoch_go_on(tmp_path):
    whole, _ = fit(tmp_path, files(tmp_path), max_epochs=3, enable_checkpointing=False)
    again, _ = fit(
        tmp_path, files(tmp_path), max_epochs=3, enable_checkpointing=False, reload_dataloaders_every_n_epochs=1
    )
    assert again == whole


def test_reading_the_training_images_in_between_changes_nothing(tmp_path):
    class Reader(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            next(iter(trainer.train_dataloader))

    whole, _ = fit(tmp_path, files(tmp_path), max_epochs=3, enable_checkpointing=False)
    read, _ = fit(tmp_path, files(tmp_path), max_epochs=3, enable_checkpointing=False, callbacks=[Reader()])
    assert read == whole


def test_resumed_distributed_training_does_not_repeat_an_epoch(tmp_path):
    """Lightning's, for several processes, is told the epoch only after the first batches were loaded."""
    data = files(tmp_path)
    data.setup("fit")
    train = data.splits["train"]
    train.set_epoch(2)
    third = [train[i][0] for i in range(3)]
    train.set_epoch(0)
    resumed = trainer(tmp_path, max_epochs=4)
    resumed.fit_loop.epoch_progress.current.processed = 2
    data.trainer = resumed
    loader = data.train_dataloader()
    shared = type(loader)(train, batch_size=3, sampler=DistributedSampler(train, 1, 0, shuffle=False))
    assert torch.equal(next(iter(shared))[0], torch.stack(third))


class Noting(L.Callback):
    """Writes what each process saw."""

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.sums, Path(trainer.default_root_dir) / f"{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:expected a picture that can be read")
@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_share_the_images_and_change_them_as_one_does(tmp_path, workers):
    data = files(tmp_path)
    (tmp_path / "pictures" / "train" / "cat" / "003.png").write_text("broken")
    alone, _ = fit(tmp_path, data, max_epochs=2, enable_checkpointing=False)
    fit(
        tmp_path, files(tmp_path, num_workers=workers), max_epochs=2, enable_checkpointing=False,
        devices=2, strategy="ddp_spawn", callbacks=[Noting()],
    )  # fmt: skip
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for epoch, sums in alone.items():
        assert len(ranks[0][epoch]) == len(ranks[1][epoch]) == 8
        assert sorted(ranks[0][epoch] + ranks[1][epoch]) == sorted(sums)
