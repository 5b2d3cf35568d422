"""One way of reading a project: batches, keys, networks, class names, layers and methods by name."""

from types import SimpleNamespace

import pytest
import torch
from support.task_networks import Pooled, Siamese, WithTable
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import name_methods
from interpretable_training.batches.read import pick
from interpretable_training.batches.source import annotations_of
from interpretable_training.callbacks import ExplanationLogger
from interpretable_training.callbacks.watching.discovery import find_class_names
from interpretable_training.tasks import choose_task, find_network
from interpretable_training.visual.colors import Colors, find_colors

X, Y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])


def test_lists_of_items_are_batches():
    picked = pick([{"image": x, "label": int(y), "name": "a"} for x, y in zip(X, Y)])
    assert torch.equal(picked.images, X)
    assert torch.equal(picked.target, Y)
    assert picked.rest == {"name": ["a"] * 4}
    boxes = [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1)}] * 4
    picked = pick((tuple(X), tuple(boxes)))  # as torchvision's detectors collate
    assert torch.equal(picked.images, X)
    assert picked.rest["1"] == boxes


def test_batches_of_two_views_without_labels_are_for_embeddings():
    one, other, names = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.tensor([3, 4])
    for batch, key in (([[one, other], names], False), ([one, other], None), ({"view1": one, "view2": other}, None)):
        picked = pick(batch, label_key=key)
        assert torch.equal(picked.images, one)
        assert choose_task(torch.randn(2, 8), picked).name == "embedding"
    assert choose_task(torch.randn(2, 8), pick([one, names])).name == "classification"
    assert choose_task(torch.randn(2, 8), pick([[one, other], names])).name == "classification"


def test_entries_of_the_same_name_are_all_kept():
    one, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    rest = pick([[one, other], torch.tensor([3, 4])], label_key=False).rest
    assert torch.equal(rest["1"], torch.tensor([3, 4]))
    assert torch.equal(rest["0.1"], other)


def test_bytes_are_read_as_floats_where_they_are_images():
    picked = pick({"image": (255 * X).byte(), "label": Y})
    assert picked.images.dtype == torch.float32
    assert float(picked.images.max()) > 1
    assert pick((X, (255 * X[:, :1]).byte())).images is X  # a mask stays what it is


def test_keys_may_be_functions_and_labels_may_be_none():
    batch = {"a": {"views": [X, X + 1]}, "y": Y, "id": Y + 5}
    picked = pick(batch, lambda b: b["a"]["views"][1], lambda b: b["id"])
    assert torch.equal(picked.images, X + 1)
    assert torch.equal(picked.target, Y + 5)
    assert "images (3, 16, 16) from a function" in str(picked)
    assert pick((X, Y), label_key=False).target is None
    with pytest.raises(TypeError, match="image_key= as a function that returns a tensor of the batch, got list"):
        pick(batch, lambda b: b["a"]["views"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": nn.Linear(1, 1)}, r"got Linear; write network='model' or network=lambda"),
        ({"image_key": 1.5}, "image_key as a name, an index, a function of the batch, got 1.5"),
        ({"label_key": True}, "or False for no labels, got True"),
        ({"task": "segmentaton"}, "expected task to be 'auto', one of"),
    ],
)
def test_options_are_checked_at_construction(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        ExplanationLogger(**options)


def test_network_may_be_a_function_of_the_module():
    module = nn.ModuleDict({"a": Pooled(), "b": Pooled(4)})
    reading = find_network(module, X, lambda m: m["b"])
    assert (reading.name, reading.network) == ("b", module["b"])


def test_complex_images_are_refused_with_a_way_out():
    with pytest.raises(TypeError, match="function that returns their magnitude"):
        pick({"image": X.to(torch.complex64)})
    with pytest.raises(TypeError, match="images of one size in a batch, got several sizes"):
        pick(([*X, X[0, :, :8]], [{}] * 5))


def test_masks_of_one_channel_are_masks():
    assert annotations_of({"mask": X[:, :1]})["mask"].shape == (4, 16, 16)


NAMES = ["cat", "dog"]


@pytest.mark.parametrize(
    "holder",
    [
        SimpleNamespace(class_to_idx={"dog": 1, "cat": 0}),
        SimpleNamespace(classes={0: "cat", 1: "dog"}),
        SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(id2label={0: "cat", 1: "dog"}))),
        Subset(ConcatDataset([Subset(type("Named", (list,), {"classes": NAMES})([1, 2]), [0, 1])]), [0]),
    ],
)
def test_class_names_are_found_where_libraries_keep_them(holder):
    assert find_class_names(None, holder)[0] == NAMES


def test_numbered_labels_of_a_configuration_are_no_names():
    config = SimpleNamespace(config=SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"}))
    assert find_class_names(None, config)[0] is None


def test_layers_may_lack_or_have_the_name_of_their_part():
    network = Pooled().eval()
    around = nn.Sequential()
    around.add_module("network", network)
    maps = GradCAM("body.2")(network, X, Y)
    assert torch.equal(GradCAM("body.2")(around, X, Y), maps)
    assert torch.equal(GradCAM("network.body.2")(network, X, Y), maps)


def test_methods_may_be_names():
    assert list(name_methods(["GradCAM", "eigencam"])) == ["gradcam", "eigencam"]
    with pytest.raises(ValueError, match=r"got 'GradCAMM'; closest: \['GradCAM'"):
        name_methods("GradCAMM")


def test_other_inputs_are_found_by_name_and_by_place():
    by_name = find_network(WithTable(), pick({"image": X, "meta": torch.rand(4, 2), "label": Y}))
    assert str(by_name.inputs) == "images with meta of the batch"
    assert not by_name.together
    by_place = find_network(Siamese(), pick((X, X.flip(0), Y)))
    assert by_place.inputs.args == ("<images>", "1")


def test_repeated_inputs_are_those_of_the_image():
    network, batch = WithTable().eval(), pick({"image": X, "meta": torch.rand(4, 2), "label": Y})
    row, inputs = batch.rows(slice(2, 3)), find_network(network, batch).inputs
    changed = torch.cat([row.images, 1 - row.images, 0 * row.images])
    expected = torch.cat([network(x[None], row.rest["meta"]) for x in changed])
    assert torch.allclose(inputs.call(row)(network, changed), expected, atol=1e-6)


def test_channels_that_are_shown():
    images = torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 4, 4) / 5
    pictures = find_colors(images).showing((3, 2, 1), 5).pictures(images)
    assert torch.allclose(pictures[0, :, 0, 0], torch.tensor([0.4, 0.2, 0.0]))
    with pytest.raises(ValueError, match="three numbers from 1 to 5"):
        find_colors(images).showing((0, 1, 2), 5)


def test_mean_and_std_of_bytes_do_not_make_white_pictures():
    data = SimpleNamespace(mean=0.0, std=255.0)
    colors = find_colors(X, data=data)
    assert float(colors.pictures(X).std()) > 0.1
    assert find_colors((255 * X) / 255, data=SimpleNamespace(mean=(0.0,) * 3, std=(1.0,) * 3)).mean is not None


@pytest.mark.parametrize(("frames", "shown"), [(2, [0, 1]), (8, [1, 4, 6])])
def test_frames_of_each_third_of_a_video_are_shown(frames, shown):
    video = torch.arange(frames)[None, :, None, None, None].expand(1, -1, 3, 4, 4) / 8
    for given in (video, video.transpose(1, 2)):
        picture = Colors(None, None, "").pictures(given)
        assert picture.shape == (1, 3, 4, 4 * len(shown))
        assert (8 * picture[0, 0, 0, ::4]).tolist() == shown
