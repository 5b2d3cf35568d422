"""The strict reading: what modules train on, and evaluation measures."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from lightning import Trainer
from support.watched import Keyed, pictures
from torch.utils.data import DataLoader

from interpretable_training.batches.read import pick
from interpretable_training.callbacks import ExplanationLogger
from interpretable_training.modules import Classifier, Regressor

X, Y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
Pair = namedtuple("Pair", ["pixels", "kind"])
Turned = namedtuple("Turned", ["y", "x"])


class ModelOutput(dict):
    """Entries that are attributes too, as those of Hugging Face."""

    __getattr__ = dict.__getitem__


@dataclass
class Sample:
    img: torch.Tensor
    label: torch.Tensor
    path: str = ""


READABLE = {
    "pair": (X, Y),
    "list": [X, Y],
    "target first": (Y, X),
    "with paths": (X, ["a", "b", "c", "d"], Y),
    "dict of ours": {"image": X, "target": Y, "mask": torch.ones(4, 16, 16), "box_target": torch.zeros(4, 2)},
    "dict with numbers": {"image": X, "target": Y, "weight": torch.rand(4), "index": torch.arange(4)},
    "dict of Hugging Face": UserDict(pixel_values=X, labels=Y),
    "output of Hugging Face": ModelOutput(labels=Y, pixel_values=X),
    "dict with other names": {"photo": X, "kind": Y, "path": ["a"] * 4},
    "dataclass": Sample(X, Y),
    "named tuple": Pair(X, Y),
    "named tuple, target first": Turned(Y, X),
    "nested dict": {"inputs": {"pixel_values": X}, "labels": Y},
    "nested target": (X, {"label": Y, "boxes": [X]}),
}


@pytest.mark.parametrize("case", READABLE)
def test_classifier_trains_on_what_callbacks_read(case):
    batch = READABLE[case]
    likely, strict = pick(batch), pick(batch, strict=True)
    assert strict.images is likely.images is X
    assert torch.equal(strict.target, likely.target)
    torch.manual_seed(0)
    module = Classifier("tiny_cnn", 3).eval()
    module.log_step = lambda *_: None  # no trainer
    assert torch.equal(module.training_step(batch, 0), module.training_step((X, Y), 0))
    assert torch.equal(module.predict_step(batch, 0), module.predict_step(X, 0))


def test_one_data_set_of_dicts_serves_training_and_watching(tmp_path):
    batches = DataLoader(Keyed(pictures(8, 0)), batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    watch = ExplanationLogger(max_images=2, on_error="raise")
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[watch], **quiet)
    trainer.fit(Classifier("tiny_cnn", 3), batches, batches)
    assert trainer.global_step == 2


REFUSED = {
    "two numbers per image": (X, Y, torch.arange(4)),
    "index first": (torch.arange(4), X, Y),
    "a number and an index": (X, torch.rand(4), torch.arange(4)),
    "two crops": ([X, X], Y),
    "two images": {"photo": X, "thermal": X, "target": Y},
    "nothing": None,
}


@pytest.mark.parametrize("case", REFUSED)
def test_batches_with_several_readings_are_refused(case):
    with pytest.raises(TypeError, match=r"expected a batch \(images, target\) or a dict .*; change what the data set"):
        pick(REFUSED[case], strict=True)


@pytest.mark.parametrize("batch", [X, (X,), {"image": X}, {"image": X, "mask": X[:, 0]}])
def test_images_alone_are_read_but_no_pair(batch):
    picked = pick(batch, strict=True)
    assert picked.images is X
    assert picked.target is None
    with pytest.raises(TypeError, match="expected a batch"):
        picked.pair()


def test_the_target_is_taken_as_it_is():
    """Zeros and ones may be numbers to estimate, bytes images that the module scales."""
    numbers, pixels = torch.tensor([0.0, 1, 1, 0]), X.mul(255).byte()
    assert pick((X, numbers), strict=True).target is numbers
    assert pick({"image": pixels, "depth": X, "target": numbers}, strict=True).images is pixels
    assert pick({"image": X[:, 0, 0], "target": numbers}, strict=True).images.shape == (4, 16)
    series = {"image": X[:, 0], "target": numbers, "engine": torch.arange(4)}
    assert Regressor("cnn_lstm", {"channels": 16}).predict_step(series, 0).shape == (4,)


def test_given_keys_are_taken():
    batch = {"photo": X, "thermal": X + 1, "kind": Y, "fine": Y + 1}
    picked = pick(batch, "thermal", "fine", strict=True)
    assert (picked.image_key, picked.label_key, {*picked.rest}) == ("thermal", "fine", {"photo", "kind"})
    assert pick((X, Y, Y + 1), label_key=2, strict=True).image_key == 0
    with pytest.raises(KeyError, match=r"expected the key of a tensor in a dict with .*, got 'depth'"):
        pick(batch, "depth", strict=True)
