import copy
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from interpretable_training.modules import Classifier, GuidedGradientClassifier
from interpretable_training.regularization import GuidedGradientRegularizer, both_gradients
from interpretable_training.regularization.monitoring import warn_of_collapse

STRONG = GuidedGradientRegularizer(weight=1.0)


def trainer_in(folder, **kwargs):
    return L.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", **kwargs},
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(n=16, batch_size=4):
    generator = torch.Generator().manual_seed(0)
    return DataLoader([(torch.randn(3, 16, 16, generator=generator), i % 2) for i in range(n)], batch_size=batch_size)


def small(regularizer=STRONG, cls=GuidedGradientClassifier, **kwargs):
    torch.manual_seed(0)
    options = {} if cls is Classifier else {"regularizer": regularizer}
    return cls("tiny_cnn", 2, network_kwargs={"width": 4}, **options, **kwargs)


def test_training_step_equals_regularizer_and_optimizer(tmp_path):
    module = small(optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))
    hand = copy.deepcopy(module.network)
    trainer_in(tmp_path).fit(module, loader())
    for images, target in loader():
        loss, _ = STRONG(hand, images, target)
        for p, g in zip(hand.parameters(), torch.autograd.grad(loss, [*hand.parameters()])):
            p.data -= 0.1 * g
    torch.testing.assert_close(module.network.state_dict(), hand.state_dict(), rtol=0, atol=1e-6)


def test_weight_zero_equals_plain_classifier_exactly(tmp_path):
    results = []
    for module in (small(cls=Classifier), small(GuidedGradientRegularizer(weight=0.0))):
        trainer = trainer_in(tmp_path, max_epochs=2)
        torch.manual_seed(1)
        trainer.fit(module, loader(), loader())
        logged = {k: v for k, v in trainer.callback_metrics.items() if k.endswith(("loss", "accuracy"))}
        results.append([module.state_dict(), logged, torch.get_rng_state()])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_what_is_logged_is_the_mean_over_images(tmp_path):
    """Two batches, of 4 and 2 images; nothing is learned meanwhile."""
    module = small(optimizer=lambda parameters: torch.optim.SGD(parameters, 0.0))
    network = copy.deepcopy(module.network)
    trainer = trainer_in(tmp_path)
    trainer.fit(module, loader(6), loader(6))
    logged = trainer.callback_metrics
    parts = [(len(images), STRONG(network, images, target)[1]) for images, target in loader(6)]
    for name, value in {
        "loss": lambda p: p.classification,
        "regularization": lambda p: p.regularization,
        "total_loss": lambda p: p.classification + p.regularization,
        "similarity": lambda p: -p.regularization,
        "gradient_norm": lambda p: p.norm,
        "guided_gradient_norm": lambda p: p.guided_norm,
    }.items():
        expected = sum(n * value(part) for n, part in parts) / 6
        torch.testing.assert_close(logged[f"train/{name}"], expected.detach(), rtol=1e-4, atol=1e-6)
    module.network.eval()
    pairs = [both_gradients(module.network, images, target) for images, target in loader(6)]
    similarity = torch.cat([F.cosine_similarity(d.flatten(1), d2.flatten(1)) for d, d2 in pairs]).mean()
    torch.testing.assert_close(logged["val/similarity"], similarity, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("run", ["validate", "fit"])
def test_validation_measures_and_changes_nothing(tmp_path, run):
    """Validation runs under inference mode by itself and under no_grad within a fit."""
    module = small(GuidedGradientRegularizer(weight=0.0))
    before = copy.deepcopy(module.network.state_dict())
    trainer = trainer_in(tmp_path, limit_train_batches=0, max_epochs=1)
    if run == "validate":
        trainer.validate(module, loader(), verbose=False)
    else:
        trainer.fit(module, loader(), loader())
        trainer.validate(module, loader(), verbose=False)
    assert -1 <= trainer.callback_metrics["val/similarity"] <= 1
    torch.testing.assert_close(module.network.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in module.parameters())


def test_number_of_guided_activations_is_logged_once(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer_in(tmp_path, max_epochs=2).fit(small(), loader())
    assert [r.message for r in caplog.records if "guided" in r.message] == ["6 activations of TinyCNN are guided"]


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (1.0, "expected train/similarity below 1, got 1.000000: .* Lower the weight"),
        (float("nan"), "expected a finite train/similarity, got nan: .* Train in bf16-mixed"),
        (0.9, None),
        (None, None),
    ],
)
def test_collapse_is_warned_of(tmp_path, similarity, message):
    trainer = trainer_in(tmp_path)
    if similarity is not None:
        trainer.callback_metrics["train/similarity"] = torch.tensor(similarity)
        trainer._logger_connector._callback_metrics["train/similarity"] = torch.tensor(similarity)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_collapse(trainer)
    assert len(said) == (message is not None)
    if message:
        with pytest.warns(UserWarning, match=message):
            warn_of_collapse(trainer)


class Positive(nn.Module):
    """Only class 0 has a positive weight, so that with targets of class 1 all evidence is positive."""

    def __init__(self):
        super().__init__()
        self.U = nn.Parameter(torch.rand(1, 3 * 16 * 16))

    def forward(self, images):
        y = F.relu(F.linear(images.abs().flatten(1), self.U))
        return torch.cat([y, torch.zeros_like(y)], 1) / 100


def test_equal_gradients_are_reported_as_collapse(tmp_path):
    module = GuidedGradientClassifier(Positive(), 2, STRONG, optimizer=lambda p: torch.optim.SGD(p, 1e-6))
    data = DataLoader([(torch.randn(3, 16, 16), 1) for _ in range(8)], batch_size=4)
    with pytest.warns(UserWarning, match=r"expected train/similarity below 1, got 1\.000000"):
        trainer_in(tmp_path).fit(module, data)


@pytest.mark.parametrize(
    ("regularizer", "again"),
    [
        (GuidedGradientRegularizer("mae", 2.0, fraction=0.5), {}),
        (GuidedGradientRegularizer(lambda d, d2: (d - d2).abs().flatten(1).amax(1)), None),
    ],
    ids=["plain", "function"],
)
def test_checkpoint_rebuilds_plain_values_and_asks_for_objects(tmp_path, regularizer, again):
    module, trainer = small(regularizer), trainer_in(tmp_path, limit_train_batches=1)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    if again is None:
        with pytest.raises(
            ValueError, match=r"expected regularizer=\.\.\., .* object of class GuidedGradientRegularizer"
        ):
            GuidedGradientClassifier.load_from_checkpoint(tmp_path / "some.ckpt")
        again = {"regularizer": regularizer}
    results = GuidedGradientClassifier.load_from_checkpoint(tmp_path / "some.ckpt", **again)
    assert results.regularizer == regularizer
    torch.testing.assert_close(results.network.state_dict(), module.network.state_dict())


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}], ids=str)
def test_accumulated_clipped_gradients_are_of_total_loss(tmp_path, options):
    module = small(optimizer=lambda parameters: torch.optim.SGD(parameters, 1.0))
    hand, batches = copy.deepcopy(module.network), [*loader()][:2]
    trainer_in(tmp_path, limit_train_batches=2, **options).fit(module, loader())
    accumulated = options.get("accumulate_grad_batches", 1)
    for start in range(0, 2, accumulated):
        losses = [STRONG(hand, *batch)[0] / accumulated for batch in batches[start : start + accumulated]]
        for p, g in zip(hand.parameters(), torch.autograd.grad(sum(losses), [*hand.parameters()])):
            p.grad = g
        if "gradient_clip_val" in options:
            torch.nn.utils.clip_grad_norm_(hand.parameters(), 0.01)
        for p in hand.parameters():
            p.data -= p.grad
    torch.testing.assert_close(module.network.state_dict(), hand.state_dict(), rtol=0, atol=1e-5)


def test_multilabel_targets_have_their_own_criterion(tmp_path):
    module = small(multilabel=True)
    images, target = torch.randn(4, 3, 16, 16), torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    loss, parts = STRONG(copy.deepcopy(module.network), images, target.float(), F.binary_cross_entropy_with_logits)
    torch.testing.assert_close(module.training_step((images, target), 0), loss)
    assert parts.gated == 6


@pytest.mark.parametrize("around", [pytest.param(True, marks=pytest.mark.slow), False])
def test_compiled_module_trains_eagerly_with_warning(tmp_path, around):
    plain, module = small(), small()
    trainer_in(tmp_path).fit(plain, loader())
    if around:
        compiled = torch.compile(module, backend="aot_eager")
    else:
        module.network.compile(backend="aot_eager")
    with pytest.warns(UserWarning, match=r"is compiled, and compiled modules cannot be differentiated twice"):
        trainer_in(tmp_path).fit(compiled if around else module, loader())
    torch.testing.assert_close(module.network.state_dict(), plain.network.state_dict(), rtol=1e-5, atol=1e-5)
