import logging
import math

import lightning as L
import pytest
import timm
import torch
from support.trainers import quiet_trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from interpretable_training.models import CAStream, TinyCNN
from interpretable_training.modules import CAStreamClassifier, Classifier
from interpretable_training.modules.ca_stream_classifier import coverage, entropy


def loader(n=8, batch_size=4, classes=3, multilabel=False):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    target = [torch.eye(classes)[i % classes].long() if multilabel else i % classes for i in range(n)]
    return DataLoader(list(zip(images, target)), batch_size=batch_size)


def backbone(seed=0):
    torch.manual_seed(seed)
    network = TinyCNN(3, width=4)
    for _ in range(20):
        network(torch.randn(16, 3, 32, 32))
    return network


class Meddle(L.Callback):
    """Does to a module whatever callbacks were seen to do."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.train()
        pl_module.network.backbone.train()
        pl_module.requires_grad_(True)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_backbone_is_unchanged_by_callbacks_that_write(tmp_path, options):
    module = CAStreamClassifier(backbone(), 3)
    before = module.network.checksums()
    stream = module.network.stream.query.detach().clone()
    trainer = quiet_trainer(tmp_path, callbacks=[Meddle()], max_epochs=2, **options)
    trainer.fit(module, loader(), loader())
    assert module.network.checksums() == before
    assert not any(m.training for m in module.network.backbone.modules())
    assert not torch.equal(module.network.stream.query, stream)


def test_fits_in_true_half_precision(tmp_path):
    quiet_trainer(tmp_path, precision="bf16-true").fit(CAStreamClassifier(backbone(), 3), loader(), loader())


class Drift(L.Callback):
    """Writes to what is frozen."""

    def on_train_end(self, trainer, pl_module):
        pl_module.network.backbone.stage1[1].running_var[0] += 1e-6


def test_change_of_frozen_tensor_is_an_error_with_its_name(tmp_path):
    with pytest.raises(RuntimeError, match=r"1 of its 38 tensors changed, the first is 'stage1.1.running_var'; remove"):
        quiet_trainer(tmp_path, callbacks=[Drift()]).fit(CAStreamClassifier(backbone(), 3), loader())


def test_both_poolings_are_logged_from_one_pass(tmp_path):
    """What the plain network gets is what a Classifier of it logs; what the stream gets is counted by hand."""
    plain, passes = backbone(), []
    module = CAStreamClassifier(plain, 3, stream={"start": 1})
    expected = quiet_trainer(tmp_path).validate(Classifier(plain, 3), loader(), verbose=False)[0]
    plain.stem.register_forward_hook(lambda *_: passes.append(1))
    logged = quiet_trainer(tmp_path).validate(module, loader(), verbose=False)[0]
    assert len(passes) == 2  # batches
    assert logged["val/gap_accuracy"] == expected["val/accuracy"]
    images, target = (torch.cat(parts) for parts in zip(*loader()))
    logits, attention = module.network.forward_with_attention(images)
    assert logged["val/accuracy"] == pytest.approx((logits.argmax(1) == target).float().mean().item())
    assert logged["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, target).item())
    for stage in (1, 2):
        a = attention.maps[stage - 1].flatten(1)
        by_hand = -(a * a.log()).sum(1).mean() / torch.tensor(a.shape[1]).log()
        assert logged[f"val/entropy_S{stage}"] == pytest.approx(by_hand.item(), abs=1e-5)
    assert "val/entropy_S0" not in logged


def test_entropy_and_coverage_by_hand():
    """Uniform attention has all of the entropy, and 90 % of it lie on 9 of 10 cells; on half of the cells: log 5."""
    uniform = torch.full((1, 2, 5), 0.1)
    half = torch.tensor([[[0.2] * 5, [0.0] * 5]])
    one = torch.tensor([[[1.0] + [0.0] * 4, [0.0] * 5]])
    assert_close(entropy(torch.cat([uniform, half, one])), torch.tensor([10.0, 5.0, 1.0]).log() / math.log(10))
    assert_close(coverage(torch.cat([half, one])), torch.tensor([0.5, 0.1]))
    assert coverage(torch.tensor([[0.5, 0.3], [0.15, 0.05]])).item() == 0.75


def test_multilabel_logs_both_poolings(tmp_path):
    module = CAStreamClassifier(backbone(), 3, multilabel=True)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, loader(multilabel=True), loader(multilabel=True))
    assert {"val/mAP", "val/gap_mAP", "val/loss", "train/mAP"} <= set(trainer.callback_metrics)


def test_tests_log_both_poolings_too(tmp_path):
    logged = quiet_trainer(tmp_path).test(CAStreamClassifier(backbone(), 3), loader(), verbose=False)[0]
    assert {"test/accuracy", "test/gap_accuracy", "test/entropy_S0", "test/coverage_S2"} <= set(logged)


def test_class_specific_queries_are_trained_with_labels(tmp_path):
    """Labels are 0 and 1 only: the query of class 2 gets no gradient."""
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e3), "reference_batch": None}
    module = CAStreamClassifier(backbone(), 3, stream={"class_specific": True}, **options)
    before = module.network.stream.query.detach().clone()
    quiet_trainer(tmp_path).fit(module, loader(classes=2))
    changed = (module.network.stream.query != before).any(1)
    assert changed.tolist() == [True, True, False]


def test_class_specific_labels_out_of_range_are_refused():
    module = CAStreamClassifier(backbone(), 3, stream={"class_specific": True})
    with pytest.raises(ValueError, match=r"expected targets from 0 to 2 .* got 3"):
        module.training_step((torch.zeros(2, 3, 32, 32), torch.tensor([0, 3])), 5)


def test_class_specific_multilabel_is_refused():
    with pytest.raises(ValueError, match="expected class_specific=False with multilabel=True, got both"):
        CAStreamClassifier(backbone(), 3, stream={"class_specific": True}, multilabel=True)


def test_the_defaults_are_the_papers_protocol():
    (optimizer,), (config,) = CAStreamClassifier(backbone(), 3).configure_optimizers()
    scheduler = config["scheduler"]
    expected = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    assert isinstance(optimizer, torch.optim.SGD)
    assert {name: optimizer.defaults[name] for name in expected} == expected
    assert (scheduler.step_size, scheduler.gamma) == (30, 0.1)


def test_optimizer_gets_only_the_stream():
    module = CAStreamClassifier(backbone(), 3)
    module.requires_grad_(True)
    (optimizer,), _ = module.configure_optimizers()
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in module.network.stream.parameters()}


def test_learning_rate_scales_with_global_batch(tmp_path, caplog):
    """4 images x 2 accumulated batches are 8 of 256: 0.1 * 8 / 256."""
    trainer = quiet_trainer(tmp_path, accumulate_grad_batches=2)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        trainer.fit(CAStreamClassifier(backbone(), 3), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 32)
    said = [record.getMessage() for record in caplog.records if "Learning rate" in record.getMessage()]
    assert len(said) == 1
    assert (
        "0.1, meant for 256 images per step, scaled to 0.003125 for 8: 4 in a batch, 1 processes, 2 batches" in said[0]
    )


def test_the_learning_rate_may_be_taken_as_it_is(tmp_path):
    trainer = quiet_trainer(tmp_path)
    trainer.fit(CAStreamClassifier(backbone(), 3, reference_batch=None), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1


def test_a_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="expected num_classes=3, for which the head of TinyCNN is made, got 5"):
        CAStreamClassifier(backbone(), 5)


def test_a_stream_beside_its_arguments_is_refused():
    with pytest.raises(ValueError, match="no CAStream beside stream, got CAStream"):
        CAStreamClassifier(CAStream(backbone()), 3, stream={"start": 1})


def test_a_random_backbone_by_name_is_warned_of():
    with pytest.warns(UserWarning, match="frozen backbone 'tiny_cnn', got neither: its weights are random"):
        CAStreamClassifier("tiny_cnn", 3)


@pytest.fixture
def fitted(tmp_path):
    """A function that fits a module and saves it."""

    def fit(module):
        trainer = quiet_trainer(tmp_path, enable_checkpointing=True)
        trainer.fit(module, loader(), loader())
        trainer.save_checkpoint(tmp_path / "stream.ckpt")
        return tmp_path / "stream.ckpt"

    return fit


def test_checkpoint_of_backbone_from_file_is_rebuilt(tmp_path, fitted):
    """First a Classifier learns the backbone, then the stream is learned beside it."""
    images = torch.randn(2, 3, 32, 32)
    small = {"network_kwargs": {"width": 4}}
    first = quiet_trainer(tmp_path)
    first.fit(Classifier("tiny_cnn", 3, **small), loader())
    first.save_checkpoint(tmp_path / "backbone.ckpt")
    weights = str(tmp_path / "backbone.ckpt")
    module = CAStreamClassifier("tiny_cnn", 3, weights=weights, stream={"start": 1, "heads": 2}, **small)
    assert_close(module.network.backbone(images), first.lightning_module.eval()(images))
    path = fitted(module)
    saved = torch.load(path, weights_only=True)
    assert {name.split(".")[1] for name in saved["state_dict"]} == {"stream", "_extra_state"}
    assert_close(CAStreamClassifier.load_from_checkpoint(path).eval()(images), module.eval()(images))
    again = quiet_trainer(tmp_path, max_epochs=2)
    again.fit(CAStreamClassifier.load_from_checkpoint(path), loader(), ckpt_path=path, weights_only=True)
    assert again.current_epoch == 2


def test_checkpoint_of_object_needs_the_object(fitted):
    path = fitted(CAStreamClassifier(backbone(), 3, stream={"projected": True}))
    with pytest.raises(ValueError, match=r"expected network=.*object of class TinyCNN"):
        CAStreamClassifier.load_from_checkpoint(path)
    assert CAStreamClassifier.load_from_checkpoint(path, network=backbone()).network.stream.blocks[0].key is not None
    with pytest.raises(RuntimeError, match="expected the backbone with which this stream was trained"):
        CAStreamClassifier.load_from_checkpoint(path, network=backbone(seed=1))


def test_pretrained_weights_are_loaded_again(tmp_path, monkeypatch):
    """Unlike other checkpoints, that of a stream does not hold them."""
    create = timm.create_model

    def trained(name, pretrained, **kwargs):
        assert pretrained
        torch.manual_seed(3)
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", trained)
    module = CAStreamClassifier("test_resnet", 3, pretrained=True)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "stream.ckpt")
    assert "backbone" not in {name.split(".")[1] for name in torch.load(tmp_path / "stream.ckpt")["state_dict"]}
    images = torch.randn(2, 3, 64, 64)
    assert_close(
        CAStreamClassifier.load_from_checkpoint(tmp_path / "stream.ckpt").eval()(images), module.eval()(images)
    )


def test_training_learns_where_to_look(tmp_path):
    """A bright channel says the class in one of 16 cells: average pooling dilutes it, attention learns to find it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.eye_(network[0].weight.data[:3, :, 0, 0])
    network[0].weight.data[3].zero_()
    network[0].bias.data = torch.tensor([0.0, 0, 0, 1])
    network[4].weight.data = torch.eye(3, 4)
    network[4].bias.data.zero_()
    images, target = 0.5 * torch.randn(96, 3, 16, 16), torch.arange(96) % 3
    images[torch.arange(96), target, 4:8, 4:8] += 3
    data = DataLoader(list(zip(images, target.tolist())), batch_size=16, shuffle=True)
    module = CAStreamClassifier(
        CAStream(network, stages=["1"], head="4"),
        3,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
        reference_batch=None,
    )
    before = quiet_trainer(tmp_path).validate(module, data, verbose=False)[0]
    quiet_trainer(tmp_path, max_epochs=15).fit(module, data)
    after = quiet_trainer(tmp_path).validate(module, data, verbose=False)[0]
    assert after["val/loss"] < 0.5 * before["val/loss"]
    assert after["val/gap_accuracy"] == before["val/gap_accuracy"]


def test_pairs_dicts_and_lists_of_dicts_are_read_alike(tmp_path):
    items = [{"pixel_values": image, "labels": label} for image, label in loader().dataset]
    module, losses = CAStreamClassifier(backbone(), 3), []
    for data in (loader(), DataLoader(items, 4), DataLoader(items, 4, collate_fn=list)):
        (numbers,) = quiet_trainer(tmp_path).validate(module, data, verbose=False)
        losses.append(numbers["val/loss"])
    assert losses[0] == losses[1] == losses[2]
