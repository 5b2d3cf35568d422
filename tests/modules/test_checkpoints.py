"""Checkpoints of a classifier: plain values only, rebuilt without a download."""

import lightning as L
import pytest
import timm
import torch
from torch import nn

from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier


def saved(module, folder):
    """Path of a checkpoint, made as a trainer makes it."""
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=folder)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "a.ckpt", weights_only=True)
    return folder / "a.ckpt"


def assert_same_weights(one, other):
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_a_named_network_is_rebuilt(tmp_path):
    module = Classifier("tiny_cnn", 3, network_kwargs={"width": 4}, optimizer=lambda parameters: None)
    path = saved(module, tmp_path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["network"] == "tiny_cnn"
    assert_same_weights(Classifier.load_from_checkpoint(path), module)


def test_pretrained_weights_are_not_downloaded_again(tmp_path, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kwargs: create(name, **kwargs))
    path = saved(Classifier("resnet10t", 3, pretrained=True), tmp_path)

    def refuse(name, pretrained, **kwargs):
        assert not pretrained
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", refuse)
    assert Classifier.load_from_checkpoint(path).num_classes == 3


def test_network_object_must_be_passed_again(tmp_path):
    module = Classifier(TinyCNN(3, width=4), 3)
    path = saved(module, tmp_path)
    assert "TinyCNN" in torch.load(path, weights_only=True)["hyper_parameters"]["network"]
    with pytest.raises(
        ValueError, match=r"expected network=.*object of class TinyCNN.*load_from_checkpoint\(path, netw"
    ):
        Classifier.load_from_checkpoint(path)
    assert_same_weights(Classifier.load_from_checkpoint(path, network=TinyCNN(3, width=4)), module)


def test_loss_object_must_be_passed_again(tmp_path):
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    path = saved(Classifier("tiny_cnn", 3, loss=loss), tmp_path)
    with pytest.raises(ValueError, match=r"expected loss=.*object of class CrossEntropyLoss"):
        Classifier.load_from_checkpoint(path)
    other = Classifier.load_from_checkpoint(path, loss=nn.CrossEntropyLoss(weight=torch.ones(3)))
    assert other.loss.weight.tolist() == [1, 2, 3]
