import lightning as L
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from support.trainers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

from interpretable_training.models import TinyCNN
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier


def pairs(n=8, classes=3):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 16, 16, generator=generator), i % classes) for i in range(n)]


def small(num_classes=3, **kwargs):
    return Classifier("tiny_cnn", num_classes, network_kwargs={"width": 4}, **kwargs)


class Constant(nn.Module):
    """Network that always says the same, so that metrics can be counted by hand."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_loss_and_accuracy_are_those_by_hand(tmp_path):
    """Logits (0, log 3) give the second class 3/4; three of four targets are of it."""
    module = Classifier(Constant([0.0, 3.0]).requires_grad_(False), 2)
    module.network.logits.data = torch.tensor([1.0, 3.0]).log()
    data = [(torch.zeros(3, 8, 8), target) for target in (1, 1, 0, 1)]
    logged = quiet_trainer(tmp_path).validate(module, DataLoader(data, batch_size=3), verbose=False)[0]
    assert logged["val/accuracy"] == 0.75
    expected = -(3 * torch.tensor(0.75).log() + torch.tensor(0.25).log()) / 4
    assert logged["val/loss"] == pytest.approx(expected.item())


def test_pairs_and_dicts_train_alike(tmp_path):
    losses = []
    for items in (pairs(), [{"image": x, "target": y, "name": "extra"} for x, y in pairs()]):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path)
        trainer.fit(small(), DataLoader(items, batch_size=4), DataLoader(items, batch_size=4))
        losses.append(trainer.callback_metrics["val/loss"])
    assert set(trainer.callback_metrics) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", [Classifier, CAStreamClassifier, GuidedGradientClassifier])
def test_keys_choose_images_and_labels(tmp_path, kind):
    items = [{"before": torch.zeros_like(x), "after": x, "kind": y, "place": 0} for x, y in pairs()]
    module = kind(TinyCNN(3, width=4), 3, image_key="after", label_key="kind")
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, DataLoader(items, batch_size=4), DataLoader(items, batch_size=4))
    plain = kind(module.network, 3)
    seen = [
        quiet_trainer(tmp_path).validate(net, DataLoader(data, batch_size=4), verbose=False)[0]
        for net, data in ((module, items), (plain, pairs()))
    ]
    assert seen[0]["val/loss"] == seen[1]["val/loss"]
    with pytest.raises(TypeError, match="image_key"):
        kind(TinyCNN(3, width=4), 3, image_key=True)


def test_top_five_is_logged_from_ten_classes_on(tmp_path):
    """Descending logits: class 4 is among the first five, class 5 is not, and only class 0 is first."""
    module = Classifier(Constant([-float(i) for i in range(10)]), 10)
    data = DataLoader([(torch.zeros(3, 8, 8), target) for target in (0, 4, 5, 9)], batch_size=4)
    logged = quiet_trainer(tmp_path).test(module, data, verbose=False)[0]
    assert (logged["test/accuracy"], logged["test/accuracy_top5"]) == (0.25, 0.5)


def test_multilabel_logs_mean_average_precision(tmp_path):
    module = Classifier(Constant([0.0, 1.0]), 2, multilabel=True)
    data = DataLoader([(torch.zeros(3, 8, 8), torch.tensor([1, 0])), (torch.zeros(3, 8, 8), torch.tensor([1, 1]))])
    logged = quiet_trainer(tmp_path).test(module, data, verbose=False)[0]
    assert set(logged) == {"test/loss", "test/mAP"}
    assert logged["test/mAP"] == pytest.approx(0.75)  # ties: precision 1 for the first label, 1/2 for the second
    torch.testing.assert_close(module.predict_step(torch.zeros(1, 3, 8, 8), 0), torch.tensor([[0.5, 0.731059]]))


def test_predictions_are_probabilities(tmp_path):
    found = quiet_trainer(tmp_path).predict(small(), DataLoader(pairs(), batch_size=4))
    assert [prob.shape for prob in found] == [(4, 3), (4, 3)]
    torch.testing.assert_close(torch.cat(found).sum(1), torch.ones(8))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (
            (torch.zeros(1), torch.zeros(1), torch.zeros(1)),
            r"a tuple of \['\(1,\) of float32', '\(1,\) of .*'\]",
        ),
        ({"images": torch.zeros(1)}, r"a dict with \{'images': '\(1,\) of float32'\}"),
        ([torch.zeros(1), "cat"], r"a list of \['\(1,\) of float32', 'str'\]"),
        (None, "a NoneType"),
    ],
)
def test_a_wrong_batch_is_described(batch, found):
    with pytest.raises(TypeError, match=f"expected a batch .* got {found}; change"):
        small().training_step(batch, 0)


@pytest.mark.parametrize(
    ("module", "target", "message"),
    [
        (small(), torch.tensor([0, 3]), r"expected targets from 0 to 2 \(num_classes=3\), got 3"),
        (small(), torch.tensor([-1, 0]), "expected targets from 0 to 2 .* got -1"),
        (small(), torch.zeros(2, 3), r"expected a target \(2,\) of class numbers, got \(2, 3\)"),
        (small(multilabel=True), torch.tensor([0, 1]), r"expected a multilabel target \(2, 3\) .* got \(2,\)"),
        (Classifier(TinyCNN(4, width=4), 3), torch.tensor([0, 1]), r"expected logits \(B, 3\) .* got \(2, 4\)"),
    ],
)
@pytest.mark.parametrize("batch_idx", [0, 7])
def test_unfit_targets_and_logits_are_named(module, target, message, batch_idx):
    with pytest.raises(ValueError, match=message):
        module.training_step((torch.zeros(2, 3, 16, 16), target), batch_idx)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_number_of_classes_must_equal_that_of_data(tmp_path, stage):
    data = L.LightningDataModule.from_datasets(*[pairs()] * 3, batch_size=4)
    data.num_classes = 5
    with pytest.raises(ValueError, match="expected num_classes=5, which is what LightningDataModule holds, got 3"):
        getattr(quiet_trainer(tmp_path), stage)(small(), datamodule=data)


def test_network_arguments_are_refused_with_an_object():
    with pytest.raises(ValueError, match="expected network as a name beside pretrained or network_kwargs, got TinyCNN"):
        Classifier(TinyCNN(3), 3, network_kwargs={"width": 4})


def test_scheduler_steps_once_per_epoch(tmp_path):
    module = small(scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, DataLoader(pairs(), batch_size=2))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_plateau_scheduler_watches_its_monitor(tmp_path):
    module = small(scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, "val/loss"))
    _, (config,) = module.configure_optimizers()
    assert config["monitor"] == "val/loss"


def test_loss_given_as_a_module_is_used():
    module = small(loss=nn.CrossEntropyLoss(label_smoothing=0.5))
    assert module.loss.label_smoothing == 0.5


def test_training_learns(tmp_path):
    """One color per class is learned in a few steps; a broken step would stay at chance."""
    torch.manual_seed(0)
    colors = [(torch.eye(3)[i % 3][:, None, None].expand(3, 16, 16).clone(), i % 3) for i in range(48)]
    module = small(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.03))
    trainer = quiet_trainer(tmp_path, max_epochs=4)
    trainer.fit(module, DataLoader(colors, batch_size=8, shuffle=True))
    assert trainer.test(module, DataLoader(colors, batch_size=8), verbose=False)[0]["test/accuracy"] == 1
