"""What people write with the usual CAM libraries changes their training, and the detector says how."""

import lightning as L
import pytest
import torch
from support.observed_training import Small, loaders, trainers

from interpretable_training.testing import verify_observer

grad_cam = pytest.importorskip("pytorch_grad_cam")


class UsualGradCAM(L.Callback):
    """pytorch-grad-cam as its users call it in a hook: built there, with the gradients that validation switched off."""

    def explain(self, network, images):
        with torch.enable_grad():
            self.cam = grad_cam.GradCAM(model=network, target_layers=[network[3]])
            self.cam(input_tensor=images, targets=None)


class InBatches(UsualGradCAM):
    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.explain(module.network, batch[0])


class AfterBatches(UsualGradCAM):
    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.images = batch[0]

    def on_validation_epoch_end(self, trainer, module):
        self.explain(module.network, self.images)


class AfterTraining(AfterBatches):
    on_validation_epoch_end = L.Callback.on_validation_epoch_end

    def on_train_epoch_end(self, trainer, module):
        self.explain(module.network, self.images)


def found(folder, callback, **options):
    options = {"num_sanity_val_steps": 0, **options}
    return verify_observer(trainers(folder, **options), Small, loaders, callback).differences


@pytest.mark.parametrize(
    ("callback", "moment"),
    [
        (InBatches, "after step 0 (epoch 0, batch 1) in on_validation_batch_end 0"),
        pytest.param(
            AfterBatches, "after step 0 (epoch 0, batch 1) in on_validation_epoch_end", marks=pytest.mark.slow
        ),
    ],
)
def test_peer_gradcam_in_an_accumulation_changes_the_weights(tmp_path, callback, moment):
    differences = found(tmp_path, callback, accumulate_grad_batches=4, val_check_interval=2)
    first = {(each.kind, each.name): each for each in differences if each.moment == moment}
    assert differences[0].moment == moment  # nothing before
    assert "pytorch_grad_cam" in first["hooks", "network.3"].given
    assert ("gradient", "network.0.weight") in first
    learned = [each for each in differences if (each.kind, each.name) == ("weight", "network.0.weight")]
    assert learned[0].moment == "after step 1 (epoch 0, batch 3) before on_train_batch_end"  # the step that is due
    assert "values differ, by up to" in learned[0].at_end


@pytest.mark.slow
def test_peer_gradcam_after_an_epoch_leaves_eval_mode(tmp_path):
    differences = found(tmp_path, AfterTraining)
    flags = {each.name: each for each in differences if each.kind == "training"}
    assert flags["network.7"].moment == "after step 6 (epoch 0, batch 5) in on_train_epoch_end"
    assert flags["network.7"].change == "training of network.7 is False, was True; still so at the end"
    assert {"weight", "buffer", "hooks", "gradient"} <= {each.kind for each in differences}


@pytest.mark.slow
def test_peer_gradcam_leaves_hooks_and_gradients(tmp_path):
    """With validation at the end of an epoch the accident stays without consequences, until somebody accumulates."""
    differences = found(tmp_path, InBatches, max_epochs=1)
    assert {each.kind for each in differences} == {"gradient", "hooks"}
    assert all(each.moment.startswith("after step 6 (epoch 0, batch 5)") for each in differences)
