"""What is found in batches of any kind, and how images and models of any kind are explained."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from support.watched import Keyed, Module, context_of, fit, pictures, record, small_network
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.batches.read import pick
from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.metrics import AverageDrop

X, Y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
Pair = namedtuple("Pair", ["pixels", "kind"])


@dataclass
class Sample:
    img: torch.Tensor
    label: torch.Tensor
    path: str = ""


BATCHES = {
    "tensor": (X, None, None, None),
    "images alone": ((X,), 0, None, None),
    "pair": ([X, Y], 0, 1, Y),
    "triple": ((X, Y, torch.arange(4)), 0, 1, Y),
    "index first": ((torch.arange(4), X, Y), 1, 0, torch.arange(4)),
    "with paths": ((X, ["a", "b", "c", "d"], Y), 0, 2, Y),
    "dict of ours": ({"image": X, "target": Y, "mask": torch.ones(4, 8, 8)}, "image", "target", Y),
    "dict of Hugging Face": (UserDict(pixel_values=X, labels=Y), "pixel_values", "labels", Y),
    "dict with other names": ({"idx": ["a"], "photo": X, "kind": Y}, "photo", "kind", Y),
    "dataclass": (Sample(X, Y), "img", "label", Y),
    "named tuple": (Pair(X, Y), "pixels", "kind", Y),
    "object": (SimpleNamespace(x=X, y=Y), "x", "y", Y),
    "nested dict": ({"inputs": {"pixel_values": X}, "labels": Y}, "inputs.pixel_values", "labels", Y),
    "nested target": ((X, {"label": Y, "boxes": [X]}), 0, "1.label", Y),
    "nested tuple": (((X, torch.zeros(4, 8, 8).long()), Y), "0.0", 1, Y),
    "list of two crops": (([X, X], Y), "0.0", 1, Y),
    "a mask for a label": ((X, torch.zeros(4, 8, 8).long()), 0, None, None),
    "regression": ((X, torch.rand(4)), 0, None, None),
    "two classes in floating numbers": ((X, torch.tensor([0.0, 1, 1, 0])), 0, 1, torch.tensor([0, 1, 1, 0])),
    "a column": ((X, torch.tensor([[0.0], [1], [1], [0]])), 0, 1, torch.tensor([0, 1, 1, 0])),
    "several labels": ((X, torch.eye(4)), 0, 1, torch.eye(4)),
}


@pytest.mark.parametrize("case", BATCHES)
def test_what_is_picked(case):
    batch, image_key, label_key, labels = BATCHES[case]
    results = pick(batch)
    assert (results.image_key, results.label_key) == (image_key, label_key)
    assert results.images is X
    assert (results.target is None) if labels is None else torch.equal(results.target, labels)


def test_what_is_said_goes_before_what_is_found():
    batch = {"image": X, "thermal": X + 1, "target": Y, "fine": Y + 1}
    results = pick(batch, "thermal", "fine")
    assert torch.equal(results.images, X + 1)
    assert torch.equal(results.target, Y + 1)
    assert {*results.rest} == {"image", "target"}
    assert torch.equal(pick((Y, X, Y + 1), 1, 2).target, Y + 1)
    assert {*pick((X, {"label": Y, "mask": X[:, 0]})).rest} == {"mask"}


@pytest.mark.parametrize(
    ("batch", "keys", "words"),
    [
        ((Y, Y), (), r"expected a batch with floating point images .* got a tuple of .*; pass image_key="),
        (
            {"photo": X.byte()},
            (),
            r"got a dict with {'photo': '\(.*\) of uint8'}; convert bytes to floats",
        ),
        ((X, Y), (2,), r"expected image_key to be one of \[0, 1\], got 2"),
        ((X, Y), (0, "y"), r"expected label_key to be one of \[1\], got 'y'"),
        ((X, Y), (1,), "expected floating point images .* under 1 of the batch, got"),
        ((X, ["a"] * 4), (0, 1), "expected labels as a tensor under 1 of the batch, got list"),
        (7, (), "expected a batch with floating point images"),
    ],
)
def test_a_mistake_ends_in_a_sentence(batch, keys, words):
    with pytest.raises((TypeError, KeyError), match=words):
        pick(batch, *keys)


class KeyedModule(Module):
    """Returns a dict, from a dict."""

    def forward(self, photo, **rest):
        return {"features": photo, "scores": self.network(photo)}

    def loss(self, batch):
        return F.cross_entropy(self(**batch)["scores"], batch["kind"])


def test_dicts_in_and_out(tmp_path):
    train, val = (DataLoader(Keyed(pictures(8, seed)), batch_size=4) for seed in (0, 1))
    output = {"output": "scores"}
    watching = [
        ExplanationLogger(max_images=3, hardest=2, on_error="raise", **output),
        numbers(on_error="raise", **output),
    ]
    fit(tmp_path, watching, KeyedModule(), train, val, max_epochs=1)
    table = dict(record(tmp_path).of("run")[0]["probe"])
    assert table["batches"] == "images (3, 16, 16) from 'photo', labels from 'kind'"
    assert table["network"] == "network (Sequential) of KeyedModule"
    (panel, hardest) = record(tmp_path).of("maps")
    assert sorted(row["label"] for row in panel["rows"]) == [0, 1, 2]
    assert all(row["loss"] is not None for row in hardest["rows"])


def numbers(**options):
    return InterpretabilityMetrics(metrics=AverageDrop(), max_images=4, **options)


def test_batches_that_the_projects_own_hooks_make_readable(tmp_path):
    """Bytes that a hook makes floating numbers; random augmentation is left out, as in validation."""

    class Bytes(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, target = batch["data"]
            images = images.float() / 255
            return (images + torch.rand_like(images) if self.training else images), target

    class Packed(Keyed):
        def __getitem__(self, index):
            image, label = self.data[index]
            return {"data": ((image * 255).byte(), label)}

    module, watcher = Bytes(), ExplanationDrift(max_images=4, on_error="raise")
    packed = DataLoader(Packed(pictures(8, 1)), batch_size=4)
    trainer = fit(tmp_path, [watcher], module, packed, packed, max_epochs=1)
    context = context_of(trainer, watcher)
    ids, picked = next(iter(context.batches(SimpleNamespace(lightning_module=module, world_size=1))))
    expected = (pictures(8, 1).tensors[0][ids] * 255).byte().float() / 255
    assert_close(picked.images, expected)
    assert context.colors.source == "images lie in [0, 1]"


# Images and models of other kinds


class OneLogit(Module):
    def __init__(self):
        super().__init__(small_network(classes=1))

    def loss(self, batch):
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float().view(-1))


class Multilabel(Module):
    def loss(self, batch):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())


def of_kind(channels=3, size=(16, 16), target=None):
    data = pictures(8, 1, channels, size)
    return TensorDataset(data.tensors[0], data.tensors[1] if target is None else target)


KINDS = {
    "gray": (lambda: Module(small_network(1)), of_kind(1)),
    "eleven channels": (lambda: Module(small_network(11)), of_kind(11)),
    "not square": (Module, of_kind(3, (12, 20))),
    "one logit": (OneLogit, of_kind(target=torch.arange(8) % 2)),
    "one logit, floating labels": (OneLogit, of_kind(target=(torch.arange(8) % 2).float())),
    "one logit, a column": (OneLogit, of_kind(target=(torch.arange(8) % 2).float()[:, None])),
    "several labels": (Multilabel, of_kind(target=torch.eye(3).repeat(3, 1)[:8].flip(1).float())),
}


@pytest.mark.parametrize("case", KINDS)
def test_images_and_models_of_other_kinds(tmp_path, case):
    make, data = KINDS[case]
    watching = [
        ExplanationLogger(max_images=4, hardest=2, on_error="raise"),
        numbers(on_error="raise"),
        ExplanationDrift(max_images=4, on_error="raise"),
    ]
    batches, module = DataLoader(data, batch_size=4), make()
    fit(tmp_path, watching, module, batches, batches, max_epochs=1)
    panel = next(line for line in record(tmp_path).of("maps"))
    ids = [int(row["id"]) for row in panel["rows"]]
    images, target = data.tensors[0][ids], data.tensors[1][ids]
    logits = module.eval().network(images).detach()
    if logits.shape[1] == 1:
        chance = logits[:, 0].sigmoid()
        assert [row["pred"] for row in panel["rows"]] == (chance > 0.5).long().tolist()
        assert [row["prob_pred"] for row in panel["rows"]] == pytest.approx(torch.maximum(chance, 1 - chance).tolist())
        assert [row["label"] for row in panel["rows"]] == target.view(-1).tolist()
    elif case == "several labels":
        best = logits.sigmoid().max(1).values
        assert [row["prob"] for row in panel["rows"]] == pytest.approx(best.tolist())
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        assert [row["loss"] for row in panel["rows"]] == pytest.approx(loss.tolist(), rel=1e-5)
    else:
        loss = F.cross_entropy(logits, target, reduction="none")
        assert [row["loss"] for row in panel["rows"]] == pytest.approx(loss.tolist(), rel=1e-5)
