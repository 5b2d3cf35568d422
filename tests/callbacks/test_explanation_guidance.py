import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from support.guided_steps import (
    ENERGY,
    INPUT,
    LOSSES,
    PlainStep,
    annotated,
    by_hand,
    callback_of,
    classifier,
    loader,
    smooth_net,
)
from support.regularized_fits import fit
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, Gradient
from interpretable_training.callbacks import ExplanationGuidance, GuidedGradientRegularization

EACH = pytest.mark.parametrize("guidance", LOSSES.values(), ids=LOSSES)
OTHERS = {
    "a part": replace(INPUT, share=0.5),
    "own pass": replace(ENERGY, method=Gradient("l2")),
    "late": replace(ENERGY, start_step=1, warmup_steps=2),
    "last layer": replace(ENERGY, method=GradCAM()),
    "not here": replace(ENERGY, region="not_here"),
}


def trained_by_hand(guidance, batches, accumulate=1):
    module = PlainStep()
    by_hand(module.net, guidance, batches, accumulate)
    return module.state_dict()


@pytest.mark.parametrize("guidance", [*LOSSES.values(), *OTHERS.values()], ids=[*LOSSES, *OTHERS])
def test_foreign_modules_train_as_written_by_hand(tmp_path, guidance):
    keys = ("image", "target", "not_here") if guidance.region == "not_here" else ("image", "target", "mask")
    module = PlainStep()
    fit(tmp_path, module, callback_of(guidance), data=loader(guided=10, keys=keys))
    assert_close(module.state_dict(), trained_by_hand(guidance, loader(guided=10)))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())
    plain = PlainStep()
    fit(tmp_path, plain, data=loader())
    assert any((plain.state_dict()[k] - v).abs().max() > 1e-5 for k, v in module.state_dict().items())


@EACH
def test_accumulated_batches_equal_the_same_by_hand(tmp_path, guidance):
    module = PlainStep()
    fit(tmp_path, module, callback_of(guidance), data=loader(), accumulate_grad_batches=2)
    assert_close(module.state_dict(), trained_by_hand(guidance, loader(), accumulate=2))


@EACH
def test_accumulated_halves_equal_the_whole_batch(tmp_path, guidance):
    results = []
    for size, accumulate in ((4, 2), (8, 1)):
        module = PlainStep()
        fit(tmp_path, module, callback_of(guidance), data=loader(size), accumulate_grad_batches=accumulate)
        results.append(module.state_dict())
    assert_close(*results)


@EACH
def test_classifier_and_callback_train_alike(tmp_path, guidance):
    results = []
    for module, callbacks in ((classifier(guidance), []), (classifier(), [callback_of(guidance)])):
        trainer = fit(tmp_path, module, *callbacks, data=loader())
        assert trainer.callback_metrics["train/guidance"] > 0
        results.append(module.network.state_dict())
    assert_close(*results, rtol=0, atol=0)
    assert_close(dict(results[0]), {k.removeprefix("net."): v for k, v in trained_by_hand(guidance, loader()).items()})


@EACH
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_stays_close_to_float32(tmp_path, guidance, precision):
    results = []
    for how in ("32-true", precision):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        options = {"plugins": [MixedPrecision(how, "cpu", scaler)]} if how == "16-mixed" else {"precision": how}
        module = PlainStep()
        fit(tmp_path, module, callback_of(guidance), data=loader(), **options)
        start = PlainStep().state_dict()
        results.append(torch.cat([(v - start[k]).flatten() for k, v in module.state_dict().items()]))
    assert torch.cosine_similarity(*results, 0) > 0.99  # of what the parameters have moved by
    assert_close(results[1].norm(), results[0].norm(), rtol=0.1, atol=0)


def test_logged_values_are_means_over_guided_images(tmp_path):
    """Two batches, with 4 and 2 guided images; nothing is learned meanwhile."""
    module = PlainStep()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)
    trainer = fit(tmp_path, module, callback_of(ENERGY), data=loader(guided=6, n=12))
    batches = list(loader(guided=6, n=12))
    parts = [ENERGY(module.net, b["image"], b["target"], b["mask"])[1] for b in batches]
    assert [part.guided for part in parts] == [4, 2, 0]
    expected = (4 * parts[0].guidance + 2 * parts[1].guidance) / 6
    assert_close(trainer.callback_metrics["train/guidance"], expected.detach())
    assert_close(trainer.callback_metrics["train/guided_images"], torch.tensor(0.5))


def test_boxes_guide_as_the_mask_of_their_pixels(tmp_path):
    results = []
    for key, region in (("mask", "auto"), ("boxes", "auto"), ("boxes", "boxes")):
        data = loader()
        for item in data.dataset:
            item["mask"] = torch.zeros(16, 16, dtype=torch.bool)
            item["mask"][3:9, 2:10] = True
            item["boxes"] = torch.tensor([[2.0, 3.0, 10.0, 9.0]])
            item.pop("mask" if key == "boxes" else "boxes")
        module = PlainStep()
        fit(tmp_path, module, callback_of(replace(ENERGY, region=region)), data=data)
        results.append(module.state_dict())
    assert_close(results[0], results[1], rtol=0, atol=0)
    assert_close(results[0], results[2], rtol=0, atol=0)


def test_weight_zero_changes_nothing_and_needs_no_annotation(tmp_path):
    states = []
    for callbacks in ([], [ExplanationGuidance(weight=0.0)]):
        module = PlainStep()
        fit(tmp_path, module, *callbacks, data=loader(guided=0), max_epochs=2)
        states.append({**module.state_dict(), "random": torch.get_rng_state()})
    assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "keys", "guided", "wanted"),
    [
        ({}, ("image", "target"), 16, "'mask' or 'boxes'"),
        ({}, (), 0, "'mask' or 'boxes'"),
        ({"region": "boxes"}, (), 16, "'boxes'"),
        ({"region": "not_here"}, (), 16, "'not_here' or 'shortcut_mask'"),
        ({"start_step": 100}, (), 0, "'mask' or 'boxes'"),
    ],
    ids=["no key", "empty masks", "no boxes", "nothing to avoid", "late start"],
)
def test_an_epoch_without_annotation_is_refused(tmp_path, options, keys, guided, wanted):
    message = (
        rf"expected {wanted} of at least one image in the batches of the first epoch, got none in a dict with .*image"
    )
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, PlainStep(), ExplanationGuidance(**options), data=loader(guided=guided, keys=keys), max_epochs=2)


def test_annotations_in_one_batch_are_enough(tmp_path):
    trainer = fit(tmp_path, PlainStep(), callback_of(ENERGY), data=loader(guided=1), max_epochs=2)
    assert_close(trainer.callback_metrics["train/guided_images"], torch.tensor(1 / 16))


def test_masks_of_another_size_are_refused(tmp_path):
    data = loader()
    for item in data.dataset:
        item["mask"] = item["mask"][::2, ::2]
    with pytest.raises(ValueError, match=r"expected mask \(4, 16, 16\).* got shape \(4, 8, 8\)"):
        fit(tmp_path, PlainStep(), callback_of(ENERGY), data=data)


def test_a_network_without_grid_is_refused(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    with pytest.raises(
        ValueError, match=r"expected a model with a layer whose output is a grid .* got none in Sequential"
    ):
        fit(tmp_path, PlainStep(net), ExplanationGuidance(), data=loader())


def test_manual_optimization_is_refused(tmp_path):
    module = PlainStep()
    module.automatic_optimization = False
    with pytest.raises(
        RuntimeError, match=r"got PlainStep with manual; call GuidanceLoss in its training_step instead"
    ):
        fit(tmp_path, module, ExplanationGuidance(), data=loader())


def test_two_callbacks_that_record_the_step_are_refused(tmp_path):
    message = r"expected one callback that records the training step, got \['ExplanationGuidance', 'GuidedGradient"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, PlainStep(), ExplanationGuidance(), GuidedGradientRegularization(), data=loader())


def test_a_network_that_is_called_twice_is_refused(tmp_path):
    class Twice(PlainStep):
        def training_step(self, batch, batch_idx):
            return self.net(batch["image"]).mean() + self.net(-batch["image"]).mean()

    with pytest.raises(RuntimeError, match=r"expected training_step of Twice to call net once, got 2 calls"):
        fit(tmp_path, Twice(), callback_of(ENERGY), data=loader())


def test_unusual_keys_of_a_batch_are_named(tmp_path):
    keys = ("photo", "kind", "mask")
    module = PlainStep(keys=("photo", "kind"))
    options = {"image_key": "photo", "label_key": "kind", "network": "net"}
    fit(tmp_path, module, callback_of(ENERGY, **options), data=loader(guided=10, keys=keys))
    assert_close(module.state_dict(), trained_by_hand(ENERGY, loader(guided=10)))


@pytest.mark.parametrize("compiled", ["module", "network"])
def test_compiled_modules_train_eagerly_and_warn(tmp_path, compiled):
    plain, module = PlainStep(), PlainStep()
    fit(tmp_path, plain, callback_of(ENERGY), data=loader())
    if compiled == "network":
        module.net.compile(backend="aot_eager")
    trained = torch.compile(module, backend="aot_eager") if compiled == "module" else module
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        fit(tmp_path, trained, callback_of(ENERGY), data=loader())
    assert len([w for w in said if "is compiled, and compiled modules cannot be" in str(w.message)]) == 1
    assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


def test_an_error_in_the_step_leaves_nothing_behind(tmp_path):
    class Failing(PlainStep):
        def training_step(self, batch, batch_idx):
            raise OSError("disk")

    module = Failing()
    with pytest.raises(OSError, match="disk"):
        fit(tmp_path, module, callback_of(ENERGY), data=loader())
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


RANK = """
import sys
import torch, torch.distributed as dist
sys.path[:0] = [{folder!r}]
from support.guided_steps import LOSSES, annotated, smooth_net
from torch.nn.parallel import DistributedDataParallel as DDP
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{file}", rank=rank, world_size=2)
found = []
for guided in (8, 5, 3, 0):  # of these the first rank has 4, 4, 3 and 0 of its 4 images
    batch = {{name: values.chunk(2)[rank] for name, values in annotated(8, guided=guided).items()}}
    for guidance in LOSSES.values():
        net = DDP(smooth_net())
        loss, parts = guidance(net, batch["image"], batch["target"], batch["mask"])
        assert parts.guided == (min(guided, 4), max(guided - 4, 0))[rank]
        loss.backward()
        found.append([p.grad for p in net.parameters()])
if rank == 0:
    torch.save(found, {out!r})
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_other_numbers_of_guided_images_equal_one(tmp_path):
    out = str(tmp_path / "found.pt")
    code = RANK.format(folder=str(Path(__file__).parents[1]), file=tmp_path / "meet", out=out)
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank)], stderr=subprocess.PIPE) for rank in range(2)]
    for rank in ranks:
        _, error = rank.communicate(timeout=120)
        assert rank.returncode == 0, error.decode()
    expected = []
    for guided in (8, 5, 3, 0):
        batch = annotated(8, guided=guided)
        for guidance in LOSSES.values():
            net = smooth_net()
            guidance(net, batch["image"], batch["target"], batch["mask"])[0].backward()
            expected.append([p.grad for p in net.parameters()])
    assert_close(torch.load(out), expected, rtol=0, atol=1e-6)


FITS = """
import sys
import torch
sys.path.insert(0, {folder!r})
from support.guided_steps import LOSSES, PlainStep, callback_of, loader
from support.regularized_fits import EPOCHS, fit
torch.set_num_threads(1)
for name, guidance in LOSSES.items():
    module = PlainStep()
    trainer = fit({out!r}, module, callback_of(guidance), strategy="ddp", devices=2, data=loader(8, guided=3), **EPOCHS)
    if trainer.is_global_zero:
        logged = dict(trainer.callback_metrics)
        torch.save([module.state_dict(), logged], {out!r} + "/" + name + ".pt")
"""


@pytest.mark.slow
def test_two_processes_of_lightning_equal_one(tmp_path):
    """Each step takes all images, since Lightning shuffles them; three of sixteen are guided, also all on one rank."""
    script = tmp_path / "fits.py"
    script.write_text(FITS.format(folder=str(Path(__file__).parents[1]), out=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, guidance in LOSSES.items():
        module = PlainStep()
        trainer = fit(
            tmp_path, module, callback_of(guidance), data=loader(16, guided=3), max_epochs=3, precision="64-true"
        )
        state, logged = torch.load(tmp_path / f"{name}.pt")
        assert_close(state, module.state_dict(), rtol=0, atol=1e-6)
        assert_close(logged, dict(trainer.callback_metrics), rtol=0, atol=1e-6)
