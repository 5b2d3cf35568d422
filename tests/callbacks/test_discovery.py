"""Discovery of network, class names and colors in a module and its data."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from support.watched import Memory, Module, fit, loader, pictures, record, small_network
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import transforms
from torchvision.transforms import v2

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import ExplanationLogger, InterpretabilityMetrics
from interpretable_training.callbacks.watching.discovery import find_class_names
from interpretable_training.metrics import AverageDrop
from interpretable_training.tasks import find_network
from interpretable_training.visual.colors import find_colors

X, Y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def numbers(**options):
    return InterpretabilityMetrics(metrics=AverageDrop(), max_images=4, **options)


class Bare(L.LightningModule):
    """Without a `forward` of its own."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Scaled(Bare):
    """Does more than its part."""

    def forward(self, images):
        return 2 * self.net(images)


class TakesBatches(Bare):
    def forward(self, batch):
        return self.net(batch["image"])


class Chain(L.LightningModule):
    """Is the network itself."""

    def __init__(self):
        super().__init__()
        self.features, self.head = small_network()[:4], small_network()[4:]

    def forward(self, images):
        return self.head(self.features(images))


def compiled():
    return torch.compile(small_network(), backend="eager")


def frozen():
    return small_network().requires_grad_(False)


NETWORKS = {
    "the part that forward calls": (lambda: Module(), "network"),
    "the only part": (lambda: Bare(net=small_network()), "net"),
    "the part that returns the same": (lambda: Module(nn.Sequential(small_network())), "network"),
    "itself, which scales": (lambda: Scaled(net=small_network()), ""),
    "itself, of two parts": (Chain, ""),
    "a part, where forward takes batches": (lambda: TakesBatches(net=small_network()), "net"),
    "compiled": (lambda: Bare(net=compiled()), "net"),
    "compiled, called by forward": (lambda: Module(compiled()), "network"),
    "frozen": (lambda: Bare(net=frozen()), "net"),
    "beside a criterion with weights": (lambda: Bare(net=small_network(), criterion=nn.PReLU()), "net"),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_which_network_is_found(case):
    make, name = NETWORKS[case]
    module = make()
    reading = find_network(module, torch.rand(2, 3, 16, 16))
    assert reading.name == name
    assert reading.network is (module if name == "" else getattr(module, name))


def test_two_networks_need_a_name():
    module = Bare(student=small_network(), teacher=small_network(seed=1))
    with pytest.raises(ValueError, match=r"got \['student', 'teacher'\].*pass network="):
        find_network(module, X)
    assert find_network(module, X, "teacher").network is module.teacher
    with pytest.raises(ValueError, match=r"got 'teachr'; closest: \['teacher', "):
        find_network(module, X, "teachr")


@pytest.mark.parametrize("output", [1, "scores", lambda out: out["scores"] if isinstance(out, dict) else out[1]])
def test_outputs_that_are_said(output):
    class Tells(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_network()

        def forward(self, images):
            logits = self.net(images)
            return (images, logits) if output == 1 else {"embedding": images, "scores": logits}

    module = Bare(model=Tells())
    assert find_network(module, X, output=output).name == "model"


def test_two_watchers_of_two_networks_live_together(tmp_path):
    class Distilled(Module):
        def __init__(self):
            super().__init__()
            self.teacher = small_network(seed=1)

    watching = [numbers(network=name, methods={name: GradCAM()}, on_error="raise") for name in ("network", "teacher")]
    trainer = fit(tmp_path, watching, Distilled(), max_epochs=1)
    assert {"xai/network/average_drop", "xai/teacher/average_drop"} <= {*trainer.callback_metrics}
    indices = [ExplanationLogger(images=[i], on_error="raise") for i in (0, 1)]
    fit(
        tmp_path / "b",
        [*indices, ExplanationLogger(max_images=1), ExplanationLogger(images=pictures(2), max_images=1)],
        max_epochs=1,
    )


# Names and colors


def test_where_class_names_are_from():
    names = ["a", "b"]
    assert find_class_names(["x", 1], SimpleNamespace(classes=names)) == (["x", "1"], "given")
    assert find_class_names(None, SimpleNamespace(class_names=names))[0] == names
    assert find_class_names(None, None, Subset(SimpleNamespace(classes=names), [0]))[0] == names
    assert find_class_names(None, SimpleNamespace(classes=2), SimpleNamespace(categories=names))[0] == names
    assert find_class_names(None, None) == (None, "not found: numbers")


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NORMALIZED = (torch.rand(2, 3, 8, 8) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def with_transform(transform):
    return SimpleNamespace(dataset=SimpleNamespace(transform=transform))


class TimmLike(nn.Module):
    pretrained_cfg = {"mean": MEAN, "std": STD}


COLORS = {
    "given": {"mean": MEAN, "std": STD},
    "data module": {"data": SimpleNamespace(mean=MEAN, std=STD)},
    "data module's transform": {
        "data": SimpleNamespace(transform=transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))
    },
    "torchvision": {
        "dataset": with_transform(transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))
    },
    "torchvision v2": {
        "dataset": with_transform(v2.Compose([v2.ToImage(), v2.Compose([v2.Normalize(list(MEAN), list(STD))])]))
    },
    "timm": {"module": nn.Sequential(TimmLike())},
    "in the network's module": {"module": nn.Sequential(transforms.Normalize(MEAN, STD))},
}


@pytest.mark.parametrize("case", COLORS)
def test_where_colors_are_from(case):
    colors = find_colors(NORMALIZED, **COLORS[case])
    assert colors.mean == pytest.approx(MEAN)
    assert colors.std == pytest.approx(STD)
    assert not colors.guessed


def test_colors_that_have_to_be_guessed_are_said_in_the_caption(tmp_path):
    logger = Memory()
    shifted = TensorDataset(pictures(8).tensors[0] * 7 - 3, pictures(8).tensors[1])
    data = DataLoader(shifted, batch_size=4)
    fit(
        tmp_path, [ExplanationLogger(max_images=2, on_error="raise")], train=data, val=data, logger=logger, max_epochs=1
    )
    assert dict(record(tmp_path).of("run")[0]["probe"])["colors"] == "not found: each image on its own scale"
    captions = [caption for _, caption in logger.pictures[0][2]["xai/gradcam"]]
    assert all("colors guessed" in caption for caption in captions)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clean": 9, "noisy": 6}, "images are from 'clean', the first of 2 validation loaders"),
        ([9, 6, 3], "images are from the first of 3 validation loaders"),
        (9, None),
    ],
)
def test_start_report_names_the_watched_of_several_loaders(tmp_path, given, words):
    val = loader(given) if isinstance(given, int) else given
    val = {name: loader(n) for name, n in val.items()} if isinstance(val, dict) else val
    val = [loader(n) for n in val] if isinstance(val, list) else val
    fit(tmp_path, [ExplanationLogger(max_images=2)], val=val, max_epochs=1)
    line = dict(record(tmp_path).of("run")[0]["probe"]).get("loaders")
    assert line is None if words is None else line == f"{words}; pass images= for those of another"


def test_start_report_names_no_loaders_for_images_of_the_user(tmp_path):
    mine = ExplanationLogger(max_images=2, images=loader(3))
    fit(tmp_path, [mine], val=[loader(), loader()], max_epochs=1)
    assert "loaders" not in dict(record(tmp_path).of("run")[0]["probe"])
