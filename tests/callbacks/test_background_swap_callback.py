from collections import namedtuple
from dataclasses import asdict
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from interpretable_training.callbacks import BackgroundSwap
from interpretable_training.cli import main
from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier
from interpretable_training.regularization import SwapBackgrounds
from interpretable_training.regularization.background_swap import widened

ALL = SwapBackgrounds(share=1.0, widen=1)
Named = namedtuple("Named", ["image", "target", "mask"])
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}


class Recorder(L.LightningModule):
    """A foreign module that records what its training steps get."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 6)
        self.seen = []

    def training_step(self, batch, batch_idx):
        entries = batch._asdict() if hasattr(batch, "_asdict") else dict(batch)
        self.seen.append({name: value.clone() for name, value in entries.items()})
        return nn.functional.cross_entropy(self.net(entries["image"].mean((2, 3))), entries["target"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(n=3, kind=dict):
    """Batches of shapes, which `fit` yields again in each epoch: the same tensors."""
    data = ShapesDataModule(16, n_train=8 * n, batch_size=8, annotations=True)
    data.setup("fit")
    names = ("image", "target", "mask")
    return [kind(**{name: batch[name] for name in names}) for batch in data.train_dataloader()]


def fit(loader, callback, epochs=2, module=None, callbacks=(), ckpt_path=None, **options):
    torch.manual_seed(0)
    module = module or Recorder()
    options = {"enable_checkpointing": bool(callbacks), **QUIET, **options}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[*([callback] if callback else []), *callbacks], **options)
    trainer.fit(module, DataLoader(loader, batch_size=None, collate_fn=lambda batch: batch), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("kind", [dict, Named])
def test_backgrounds_change_from_the_second_epoch_on_and_nothing_else(kind):
    loader = batches(kind=kind)
    originals = [{name: value.clone() for name, value in (b if kind is dict else b._asdict()).items()} for b in loader]
    seen = fit(loader, BackgroundSwap(ALL), epochs=3).seen
    for epoch in range(3):
        for batch, original in zip(seen[3 * epoch : 3 * epoch + 3], originals):
            assert torch.equal(batch["target"], original["target"])
            assert torch.equal(batch["mask"], original["mask"])
            stays = widened(original["mask"], 1)[:, None]
            assert torch.equal(batch["image"].where(stays, 0), original["image"].where(stays, 0))
            changed = (batch["image"] != original["image"]).flatten(1).any(1)
            assert changed.all() if epoch else not changed.any()
    assert not torch.equal(seen[3]["image"], seen[6]["image"])  # other draws in each epoch
    for batch, original in zip(loader, originals):  # what the loader holds is as before
        for name, value in original.items():
            assert torch.equal(batch[name] if kind is dict else getattr(batch, name), value)


def test_other_random_numbers_are_those_of_a_plain_training():
    states = []
    for callback in (None, BackgroundSwap(ALL)):
        fit(batches(), callback)
        states.append((torch.get_rng_state(), torch.rand(1)))
    assert torch.equal(states[0][0], states[1][0])


def test_a_resumed_training_draws_the_same(tmp_path):
    whole = fit(batches(), BackgroundSwap(ALL), epochs=3).seen
    keep = ModelCheckpoint(tmp_path, save_last=True)
    fit(batches(), BackgroundSwap(ALL), epochs=2, callbacks=[keep])
    resumed = fit(batches(), BackgroundSwap(ALL), epochs=3, ckpt_path=tmp_path / "last.ckpt").seen
    assert len(resumed) == 3
    for batch, expected in zip(resumed, whole[6:]):
        assert torch.equal(batch["image"], expected["image"])


def one_step(loader, callback, epoch=1, rank=0, step=0):
    callback.on_train_batch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None, loader, step)
    return loader["image"]


def test_processes_draw_differently():
    draws = [one_step(batches(1)[0], BackgroundSwap(ALL), rank=rank) for rank in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_boxes_serve_as_masks_do():
    batch = batches(1)[0]
    boxes = torch.full((8, 2, 4), torch.nan)
    boxes[:6, 0] = torch.tensor([2.0, 3, 9, 8])  # images 6 and 7 have none
    with_boxes = {"image": batch["image"].clone(), "target": batch["target"], "boxes": boxes}
    mask = torch.zeros(8, 16, 16, dtype=torch.bool)
    mask[:6, 3:8, 2:9] = True
    with_mask = {"image": batch["image"].clone(), "target": batch["target"], "mask": mask}
    by_boxes, by_mask = (one_step(dict(entries), BackgroundSwap(ALL)) for entries in (with_boxes, with_mask))
    assert torch.equal(by_boxes, by_mask)
    assert torch.equal(by_boxes[6:], batch["image"][6:])
    assert (by_boxes[:6] != batch["image"][:6]).flatten(1).any(1).all()


def test_argument_of_the_classifier_equals_the_callback(tmp_path):
    states = []
    for swap, callback in ((None, BackgroundSwap(ALL)), (ALL, None), (None, None)):
        torch.manual_seed(0)
        module = Classifier("tiny_cnn", 6, network_kwargs={"width": 4}, swap=swap)
        fit(batches(), callback, module=module)
        states.append(module.network.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert any((states[0][name] != states[2][name]).any() for name in states[0])


def test_checkpoints_of_a_classifier_keep_its_swap_as_plain_values(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_last=True)
    fit(batches(), None, epochs=1, module=Classifier("tiny_cnn", 6, swap=ALL), callbacks=[keep])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["swap"] == asdict(ALL)
    assert Classifier.load_from_checkpoint(tmp_path / "last.ckpt").swap == ALL


def test_swap_is_an_option_of_the_command(tmp_path, monkeypatch):
    seen, swap = [], BackgroundSwap.on_train_batch_start
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        BackgroundSwap, "on_train_batch_start", lambda self, *args: seen.append(self.swap) or swap(self, *args)
    )
    words = ["--model=Classifier", "--model.network=tiny_cnn", "--model.num_classes=6", "--data=ShapesDataModule"]
    words += ["--data.image_size=16", "--data.n_train=8", "--data.n_val=4", "--data.batch_size=4"]
    words += ["--data.annotations=true", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
    main(["fit", *words, "--model.swap.share=0.25", "--model.swap.widen=1"])
    (tmp_path / "swap.yaml").write_text(
        "trainer: {callbacks: [{class_path: BackgroundSwap, init_args: {swap: {share: 0.25, widen: 1}}}]}"
    )
    main(["fit", "--config=swap.yaml", *words])
    assert seen == [SwapBackgrounds(share=0.25, widen=1)] * 2


def test_soft_labels_and_accumulated_gradients_are_untouched():
    loader = batches()
    for batch in loader:
        batch["target"] = torch.eye(6)[batch["target"]]
    module = fit(loader, BackgroundSwap(ALL), accumulate_grad_batches=2)
    assert torch.equal(module.seen[3]["target"], loader[0]["target"])


def test_batches_without_annotations_stop_the_training_early():
    loader = [{name: batch[name] for name in ("image", "target")} for batch in batches(10)]
    module = Recorder()
    with pytest.raises(ValueError, match=r"expected 'mask' or 'boxes' in batches, got a dict with .*'target'.*; make"):
        fit(loader, BackgroundSwap(), module=module)
    assert len(module.seen) == 7  # before the first epoch ends
    with pytest.raises(ValueError, match="expected an image with an object, got no entry for it in the 3 batches"):
        fit(loader[:3], BackgroundSwap())


def test_some_batches_may_lack_annotations():
    loader = batches()
    del loader[0]["mask"]
    seen = fit(loader, BackgroundSwap(ALL)).seen
    assert torch.equal(seen[3]["image"], loader[0]["image"])
    assert not torch.equal(seen[4]["image"], loader[1]["image"])


def test_empty_masks_alone_stop_the_training_after_an_epoch():
    loader = batches()
    for batch in loader:
        batch["mask"] = torch.zeros_like(batch["mask"])
    with pytest.raises(ValueError, match="got empty masks and boxes only in the 3 batches of an epoch; make batches"):
        fit(loader, BackgroundSwap())


def test_masks_of_another_size_are_refused():
    loader = batches()
    loader[0]["mask"] = loader[0]["mask"][:, ::2, ::2]
    with pytest.raises(ValueError, match=r"expected mask \(8, 16, 16\), .* got shape \(8, 8, 8\)"):
        fit(loader, BackgroundSwap())


def test_images_are_put_back_when_a_step_fails():
    class Failing(Recorder):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("a failing step")

    loader = batches(kind=Named)
    before = loader[0].image.clone()
    with pytest.raises(RuntimeError, match="a failing step"):
        fit(loader, BackgroundSwap(SwapBackgrounds(share=1.0, from_epoch=0)), module=Failing())
    assert torch.equal(loader[0].image, before)
