import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from support.regularized_fits import EPOCHS, STRONG, fit, loader, two_ways
from torch import nn

from interpretable_training.callbacks import GuidedGradientRegularization
from interpretable_training.modules import Classifier, GuidedGradientClassifier
from interpretable_training.regularization import GuidedGradientRegularizer


class Foreign(L.LightningModule):
    """A foreign module: a functional ReLU between its parts, a dict as output, no criterion, unusual names."""

    def __init__(self):
        super().__init__()
        self.net, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)), nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        features = F.relu(self.net(pixels := batch["pixels"]), inplace=True).mean((2, 3))
        assert not pixels.requires_grad
        loss = F.cross_entropy(self.head(features), batch["label"])
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Record(L.Callback):
    """Record the parameters after each step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append(copy.deepcopy(pl_module.state_dict()))


def small(cls=Classifier, **kwargs):
    torch.manual_seed(0)
    return cls("tiny_cnn", 2, network_kwargs={"width": 4}, **kwargs)


def both_ways(folder, regularizer, at=None, **kwargs):
    """Return the states after each step of a module with the regularizer, and of one with the callback."""
    states = []
    of_callback = regularizer if at is None else replace(regularizer, at=f"network.{regularizer.at}")
    for module, callbacks in (
        (small(GuidedGradientClassifier, regularizer=regularizer), []),
        (small(), [GuidedGradientRegularization(of_callback)]),
    ):
        record = Record()
        fit(folder, module, record, *callbacks, **kwargs)
        states.append(record.states)
    return states


@pytest.mark.parametrize(
    ("regularizer", "options"),
    [
        (STRONG, {}),
        (replace(STRONG, error="mae", grad_of="sum"), {"accumulate_grad_batches": 2}),
        (STRONG, {"gradient_clip_val": 0.1}),
        (STRONG, {"precision": "bf16-mixed"}),
        (replace(STRONG, every_n_steps=2, rescale=True), {}),
        (replace(STRONG, warmup_steps=3), {}),
        (replace(STRONG, fraction=0.5), {}),
        (replace(STRONG, at="stage2"), {"at": True}),
        (replace(STRONG, scope="modules"), {}),
    ],
    ids=["exact", "accumulation", "clipping", "bf16", "every 2", "warm-up", "fraction", "layer", "modules"],
)
def test_it_equals_the_module_step_for_step(tmp_path, regularizer, options):
    module, callback = both_ways(tmp_path, regularizer, **options)
    assert len(module) == len(callback) == 4
    for a, b in zip(module, callback):
        shared = {k: a[k] for k in b}
        torch.testing.assert_close(shared, b, rtol=1e-6, atol=1e-7)
    plain = Record()
    fit(tmp_path, small(), plain, **{k: v for k, v in options.items() if k != "at"})
    assert any((module[-1][k] != v).any() for k, v in plain.states[-1].items())


def test_float16_with_its_scaler_equals_the_module(tmp_path):
    results = []
    for module, callbacks in (
        (small(GuidedGradientClassifier, regularizer=STRONG), []),
        (small(), [GuidedGradientRegularization(STRONG)]),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fit(tmp_path, module, *callbacks, plugins=[plugin])
        results.append({k: v for k, v in module.state_dict().items() if k.startswith("network")})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_foreign_module_is_regularized_untouched(tmp_path):
    """Its step by hand: both gradients of the loss of one forward pass, and SGD."""
    torch.manual_seed(0)
    module = Foreign()
    hand = copy.deepcopy(module)
    data = loader(keys=("pixels", "label"))
    trainer = fit(tmp_path, module, GuidedGradientRegularization(STRONG), data=data)
    for batch in data:

        def score(network_images):
            return hand.head(F.relu(hand.net(network_images)).mean((2, 3)))

        network = nn.Module()
        network.forward = score
        loss, _ = STRONG(network, batch["pixels"], batch["label"])
        for p, g in zip(hand.parameters(), torch.autograd.grad(loss, [*hand.parameters()])):
            p.data -= 0.1 * g
    torch.testing.assert_close(module.state_dict(), hand.state_dict())
    assert "training_step" not in vars(module)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())
    assert -1 <= trainer.callback_metrics["train/similarity"] <= 1


def test_weight_zero_changes_nothing(tmp_path):
    states = []
    for callbacks in ([], [GuidedGradientRegularization(GuidedGradientRegularizer(weight=0.0))]):
        module = small()
        fit(tmp_path, module, *callbacks, max_epochs=2)
        states.append({**module.state_dict(), "random": torch.get_rng_state()})
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_manual_optimization_is_refused(tmp_path):
    module = Foreign()
    module.automatic_optimization = False
    with pytest.raises(RuntimeError, match=r"expected a module with automatic optimization, got Foreign"):
        fit(tmp_path, module, GuidedGradientRegularization())


def test_a_network_that_never_sees_images_is_named(tmp_path):
    data = loader(keys=("pixels", "label"))
    with pytest.raises(RuntimeError, match=r"training_step of Foreign to call head with images .* pass network="):
        fit(tmp_path, Foreign(), GuidedGradientRegularization(network="head"), data=data)


def test_a_fraction_needs_a_criterion(tmp_path):
    regularizer = GuidedGradientRegularizer(fraction=0.5)
    data = loader(keys=("pixels", "label"))
    with pytest.raises(ValueError, match=r"expected a criterion .* in Foreign; pass criterion="):
        fit(tmp_path, Foreign(), GuidedGradientRegularization(regularizer), data=data)


def test_an_error_in_the_step_leaves_nothing_behind(tmp_path):
    class Failing(Foreign):
        def training_step(self, batch, batch_idx):
            raise OSError("disk")

    module = Failing()
    with pytest.raises(OSError, match="disk"):
        fit(tmp_path, module, GuidedGradientRegularization(), data=loader(keys=("pixels", "label")))
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("compiled", ["module", "network"])
def test_a_compiled_module_trains_eagerly_and_says_so(tmp_path, compiled):
    plain, module = small(), small()
    fit(tmp_path, plain, GuidedGradientRegularization(STRONG))
    if compiled == "network":
        module.network.compile(backend="aot_eager")
    trained = torch.compile(module, backend="aot_eager") if compiled == "module" else module
    with pytest.warns(UserWarning, match="is compiled, and compiled modules cannot be differentiated twice"):
        fit(tmp_path, trained, GuidedGradientRegularization(STRONG))
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


RANKS = """
import sys
import torch
sys.path.insert(0, {folder!r})
from support.regularized_fits import EPOCHS, fit, loader, two_ways
torch.set_num_threads(1)
for way in ("module", "callback"):
    module, callbacks = two_ways()[way]
    trainer = fit({out!r}, module, *callbacks, strategy="ddp", devices=2, data=loader(8), **EPOCHS)
    if trainer.is_global_zero:
        torch.save(module.state_dict(), {out!r} + "/" + way + ".pt")
"""


@pytest.mark.slow
def test_two_processes_of_lightning_equal_one(tmp_path):
    """Each step takes all images, since Lightning shuffles them: two halves are the whole."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(folder=str(Path(__file__).parents[1]), out=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for way, (module, callbacks) in two_ways().items():
        fit(tmp_path, module, *callbacks, data=loader(16), **EPOCHS)
        results = torch.load(tmp_path / f"{way}.pt")
        torch.testing.assert_close(results, module.state_dict(), rtol=0, atol=1e-6)
