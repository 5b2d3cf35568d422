"""Guidance as an argument of `Classifier`: checkpoints of plain values, and files."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from support.guided_steps import ENERGY

from interpretable_training.attribution import GradCAM, Gradient
from interpretable_training.modules import Classifier, GuidedGradientClassifier
from interpretable_training.modules.saved_guidance import guidance_of, plain_guidance
from interpretable_training.regularization import GuidanceLoss, SwapBackgrounds


def saved(module, folder):
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=folder)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "a.ckpt", weights_only=True)
    return folder / "a.ckpt"


def guided(guidance):
    return Classifier("tiny_cnn", 3, network_kwargs={"width": 4}, optimizer=lambda parameters: None, guidance=guidance)


GUIDED = {
    "default": GuidanceLoss(),
    "layers": replace(ENERGY, method=GradCAM(layer=["stage1", "stage2"]), share=0.5),
    "gradient": replace(ENERGY, method=Gradient("l2"), region="not_here"),
}


@pytest.mark.parametrize("guidance", GUIDED.values(), ids=GUIDED)
def test_guidance_comes_back_from_a_checkpoint(tmp_path, guidance):
    path = saved(guided(guidance), tmp_path)
    held = torch.load(path, weights_only=True)["hyper_parameters"]["guidance"]
    assert held["loss"] == guidance.loss
    assert held["method"]["class_path"].endswith(type(guidance.method).__name__)
    assert guidance_of(plain_guidance(guidance)) == guidance_of(held) == Classifier.load_from_checkpoint(path).guidance


def test_classifiers_without_guidance_add_no_callback(tmp_path):
    path = saved(guided(None), tmp_path)
    module = Classifier.load_from_checkpoint(path)
    assert module.guidance is None
    assert module.configure_callbacks() == []


def test_guidance_by_a_function_must_be_passed_again(tmp_path):
    guidance = replace(ENERGY, loss=lambda S, M: S.flatten(1).mean(1))
    path = saved(guided(guidance), tmp_path)
    with pytest.raises(ValueError, match=r"expected guidance=.*object of class GuidanceLoss"):
        Classifier.load_from_checkpoint(path)
    assert Classifier.load_from_checkpoint(path, guidance=ENERGY).guidance is ENERGY


def test_a_checkpoint_names_no_class_but_a_method():
    plain = plain_guidance(ENERGY)
    plain["method"]["class_path"] = "torch.nn.Linear"
    with pytest.raises(
        ValueError, match=r"expected the class of a method as method of guidance, got 'torch.nn.Linear'"
    ):
        guidance_of(plain)


def test_guidance_and_guided_gradients_together_are_refused():
    with pytest.raises(ValueError, match="expected no guidance with a guided-gradient regularizer, got both"):
        GuidedGradientClassifier("tiny_cnn", 3, guidance=ENERGY)


def test_keys_reach_the_callbacks_and_come_back_from_a_checkpoint(tmp_path):
    keys = {"image_key": "photo", "label_key": 1}
    options = {"network_kwargs": {"width": 4}, "swap": SwapBackgrounds(), "guidance": GuidanceLoss(), **keys}
    module = Classifier("tiny_cnn", 3, optimizer=lambda parameters: None, **options)
    swap, guidance = module.configure_callbacks()
    assert swap.image_key == guidance.image_key == "photo"
    assert guidance.label_key == 1
    loaded = Classifier.load_from_checkpoint(saved(module, tmp_path))
    assert (loaded.image_key, loaded.label_key) == ("photo", 1)
