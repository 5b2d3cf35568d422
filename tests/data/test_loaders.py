"""What every data module promises, on shapes."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from interpretable_training.data import SeededDataModule, ShapesDataModule


def shapes(**kwargs) -> ShapesDataModule:
    data = ShapesDataModule(**{"image_size": 16, "n_train": 24, "n_val": 12, "n_test": 12, "batch_size": 5, **kwargs})
    data.setup()
    return data


def two_epochs(data: ShapesDataModule) -> Tensor:
    loader = data.train_dataloader()
    return torch.stack([torch.cat([images for images, _ in loader]) for _ in range(2)])


def test_order_depends_on_the_seed_alone():
    torch.manual_seed(1)
    alone = two_epochs(shapes())
    torch.manual_seed(2)
    assert_close(two_epochs(shapes(num_workers=2)), alone, rtol=0, atol=0)  # the second epoch too

    data = shapes()
    data.seed = 1  # the same pictures, in another order
    assert not torch.equal(two_epochs(data), alone)


def test_every_epoch_shows_every_image_once_in_a_new_order():
    data = shapes()
    stored = torch.stack([data.splits["train"][i][0] for i in range(24)]).flatten(1)
    first, second = two_epochs(data).flatten(2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, stored)
    for epoch in (first, second):
        assert (torch.cdist(epoch, stored).argmin(1).sort().values == torch.arange(24)).all()


def test_drawing_and_loading_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    data = shapes()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_keeps_order_and_predict_uses_the_test_split():
    data = shapes()
    for split, loader in (
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
        ("test", data.predict_dataloader()),
    ):
        loaded = torch.cat([target for _, target in loader])
        assert loaded.tolist() == [data.splits[split][i][1] for i in range(12)]


def test_setup_makes_the_splits_of_the_stage_once():
    data = ShapesDataModule(16, n_train=6, n_val=6, n_test=6)
    data.setup("fit")
    assert set(data.splits) == {"train", "val"}
    kept = data.splits["train"]
    with pytest.raises(RuntimeError, match=r"expected the test split, got \['train', 'val'\]; call setup"):
        data.test_dataloader()
    data.setup("fit")
    data.setup()
    assert data.splits["train"] is kept
    assert set(data.splits) == {"train", "val", "test"}


def test_arguments_are_checked_when_they_are_given():
    with pytest.raises(ValueError, match=r"expected batch_size >= 1, got 0; pass"):
        SeededDataModule(batch_size=0)
    with pytest.raises(ValueError, match=r"expected num_workers >= 0, got -1; pass"):
        SeededDataModule(num_workers=-1)
    with pytest.raises(ValueError, match=r"expected seed >= 0, got -3; pass"):
        SeededDataModule(seed=-3)
    with pytest.raises(NotImplementedError, match="expected SeededDataModule to implement setup"):
        SeededDataModule().setup("fit")


class Linear(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3 * 16 * 16, 6), {"train": 0, "val": 0, "test": 0}

    def loss(self, batch, split):
        images, target = batch
        self.seen[split] += len(images)
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), target)

    def training_step(self, batch, batch_idx):
        return self.loss(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.loss(batch, "val")

    def test_step(self, batch, batch_idx):
        self.loss(batch, "test")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_trainer_takes_the_module_as_it_is(tmp_path):
    data, module = ShapesDataModule(16, n_train=24, n_val=12, n_test=7, batch_size=5), Linear()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert module.seen == {"train": 24, "val": 12, "test": 7}
