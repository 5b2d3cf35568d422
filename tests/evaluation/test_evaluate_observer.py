"""`evaluate` leaves the model and the generators as they were, and works wherever Lightning calls it."""

import copy
import os
import random
import socket
import warnings
from contextlib import suppress

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM, LayerCAM, SmoothGrad
from interpretable_training.metrics import ADCC, ROAD, AverageDrop, Insertion, MaxSensitivity, evaluate

METHODS = {"gradcam": GradCAM("3"), "layercam": LayerCAM("0"), "smoothgrad": SmoothGrad()}
METRICS = {
    "ad": AverageDrop(),
    "insertion": Insertion(steps=3, ties="random"),
    "road": ROAD((40,)),
    "adcc": ADCC(),
    "sensitivity": MaxSensitivity(n=1),
}


def measured(model, images, target, **options):
    data = DataLoader(TensorDataset(images, target), batch_size=2, shuffle=True)
    return evaluate(model, METHODS, METRICS, data, resamples=10, progress=False, **options)


def generators():
    name, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), *rest)]


def state(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "objects": [id(tensor) for tensor in model.state_dict(keep_vars=True).values()],
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "flags": [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()],
        "hooks": hooks,
    }


@pytest.mark.parametrize("ends", ["well", "by Ctrl-C", "by an error"])
@pytest.mark.parametrize("prepare", ["train", "eval", "mixed", "frozen"])
def test_the_model_and_all_generators_stay_as_they_were(network, images, target, prepare, ends):
    network.train(prepare != "eval")
    if prepare == "mixed":
        network[1].eval()
    if prepare == "frozen":
        network.requires_grad_(False)
    else:
        network(images).sum().backward()
    network.get_buffer("1.num_batches_tracked").fill_(7)
    before, drawn = state(network), generators()
    problem = {"by Ctrl-C": KeyboardInterrupt, "by an error": RuntimeError}.get(ends)
    if problem:

        def batches():
            yield images, target
            raise problem

        with warnings.catch_warnings(), suppress(RuntimeError):
            warnings.simplefilter("ignore")
            evaluate(network, METHODS, METRICS, batches(), resamples=10, progress=False)
    else:
        str(measured(network, images, target))
    assert_close(state(network), before, rtol=0, atol=0)
    assert generators() == drawn


def test_train_and_eval_mode_give_the_same_table(network, images, target):
    expected = measured(network.eval(), images, target).to_csv()
    assert measured(network.train(), images, target).to_csv() == expected
    assert measured(network.requires_grad_(False), images, target).to_csv() == expected


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_table_does_not_depend_on_where_it_is_made(network, images, target, guard):
    network, images = network.float(), images.float()
    expected = measured(network, images, target)
    with guard():
        results = measured(network, images.clone(), target.clone())
        text = results.to_text()
    assert results.to_text() == text  # also outside
    exact = guard in (torch.no_grad, torch.inference_mode)
    for key, cell in results.cells.items():
        assert_close(cell.mean, expected[key].mean, rtol=1e-6 if exact else 0.3, atol=1e-6 if exact else 3)


def test_a_model_in_half_precision_is_measured(network, images, target):
    expected = measured(network, images, target)
    results = measured(network.bfloat16(), images.float(), target)
    for name in ("gradcam", "fakecam"):
        assert_close(results[name, "insertion"].mean, expected[name, "insertion"].mean, rtol=0.05, atol=1)


def test_a_model_made_under_inference_mode_is_measured(network, images, target):
    expected = measured(network, images, target).to_csv()
    with torch.inference_mode():
        twin = copy.deepcopy(network)
        assert measured(twin, images, target).to_csv() == expected


def test_a_compiled_model_is_its_module(network, images, target):
    expected = measured(network, images, target)
    compiled = torch.compile(network, backend="eager")
    compiled(images)
    results = measured(compiled, images, target)
    assert results.to_csv() == expected.to_csv()
    assert results.facts == expected.facts


class Evaluates(L.LightningModule):
    """Calls `evaluate` in the middle of validation."""

    def __init__(self, network, batch):
        super().__init__()
        self.network, self.batch, self.tables = network, batch, []

    def training_step(self, batch, _):
        return self.network(batch[0]).square().mean()

    def validation_step(self, batch, _):
        self.tables += [measured(self.network, *self.batch)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_evaluate_works_in_a_validation_step(network, images, target, tmp_path):
    module = Evaluates(network.float(), (images.float(), target))
    expected = measured(module.network, *module.batch).to_csv()
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=1,
        limit_val_batches=1,
    )
    loader = DataLoader(TensorDataset(*module.batch), batch_size=5)
    trainer.validate(module, loader, verbose=False)  # under inference mode
    module.network[1].reset_running_stats()
    assert [table.to_csv() for table in module.tables] == [expected]
    trainer.fit(module, loader, loader)
    assert len(module.tables) == 3
    assert all(table.complete for table in module.tables)


@pytest.fixture
def group():
    """A group of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = {key: os.environ.get(key) for key in ("MASTER_ADDR", "MASTER_PORT")}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    for key, value in before.items():
        os.environ.pop(key)
        if value is not None:
            os.environ[key] = value


def test_a_wrapped_model_is_its_module(network, images, target, group):
    expected = measured(network, images, target)
    results = measured(nn.parallel.DistributedDataParallel(network), images, target)
    assert results.to_csv() == expected.to_csv()
    assert results.facts == expected.facts


class Drawing(TensorDataset):
    """Draws from a generator of its own, and counts."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.generator, self.read = np.random.default_rng(0), 0

    def __getitem__(self, i):
        self.read += 1
        image, target = super().__getitem__(i)
        return image + self.generator.random(), target


def test_a_data_set_with_a_generator_stays_as_it_was(network, images, target):
    data = Drawing(images, target)
    evaluate(network, GradCAM("3"), AverageDrop(), DataLoader(data, 2), resamples=10, progress=False)
    assert data.read == 0
    assert data.generator.random() == np.random.default_rng(0).random()
