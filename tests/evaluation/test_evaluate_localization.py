"""`evaluate` on batches that tell where the objects are, and what the tables say of generated shapes."""

from dataclasses import dataclass

import pytest
import torch
from support.tally import Tally
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from interpretable_training.attribution import Attribution, FakeCAM, GradCAM, Gradient
from interpretable_training.batches.read import Picked
from interpretable_training.batches.source import BatchSource, annotations_of
from interpretable_training.data import ShapesDataModule
from interpretable_training.evaluation.cache import Part
from interpretable_training.evaluation.evaluate import EvaluationRun
from interpretable_training.metrics import (
    AverageDrop,
    BoxAccuracy,
    Coherency,
    Complexity,
    EnergyLocalizationError,
    EnergyPointingGame,
    LocalizationError,
    OfficialMetric,
    PixelF1,
    PointingGame,
    Restricted,
    SaliencyMetric,
    box_rows,
    evaluate,
)

OPTIONS = {"resamples": 20, "progress": False}
METRICS = {
    "om": OfficialMetric(),
    "le": LocalizationError(),
    "ele": EnergyLocalizationError(),
    "f1": PixelF1(),
    "ba": BoxAccuracy(steps=5),
    "sp": PointingGame(),
    "ep": EnergyPointingGame(),
}


@dataclass(frozen=True)
class Known(Attribution):
    """Maps that are known, found by the images' first pixels."""

    maps: Tensor
    keys: Tensor

    def attribute(self, prepared, images, target):
        rows = (images[:, 0, 0, :4, None] == self.keys.T[None].to(images)).all(1).int().argmax(1)
        return self.maps[rows].to(images)


@pytest.fixture(scope="module")
def shapes():
    """96 images of 32 x 32, of which half hold a cue."""
    data = ShapesDataModule(image_size=32, n_train=1, n_val=96, n_test=1, annotations=True, shortcut=0.5)
    data.setup("validate")
    return data


def known(data, name):
    whole = next(iter(DataLoader(data.splits["val"], batch_size=96)))
    return Known(whole[name].float(), whole["image"][:, 0, 0, :4])


def stub(x):
    return (
        torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 6).float() + 0 * x.mean((1, 2, 3))[:, None]
    )


def test_a_map_equal_to_the_mask_is_perfect_and_noise_at_chance(shapes, function):
    """Noise hits, and has its energy on, the share of the image that objects fill: 4 standard errors at most beside."""
    model = function(stub)
    results = evaluate(model, {"mask": known(shapes, "mask")}, METRICS, shapes, **OPTIONS)
    assert {name: results["mask", name].mean for name in ("le", "ele")} == {"le": 0, "ele": 0}
    assert {name: results["mask", name].mean for name in ("f1", "ba", "sp", "ep")} == dict.fromkeys(
        ["f1", "ba", "sp", "ep"], 100
    )
    wrong = 100 * (1 - 1 / 6)
    assert results["mask", "om"].mean == pytest.approx(wrong)  # the model always says class 0
    masks = known(shapes, "mask").maps
    chance = 100 * masks.mean((1, 2)).double()
    for name in ("sp", "ep"):
        values = results.per_image("random", name)
        spread = (chance * (100 - chance)).mean().sqrt() if name == "sp" else (values - chance).std()
        assert abs(float((values - chance).mean())) < 4 * float(spread) / 96**0.5
    assert results["random", "le"].mean > 90


def test_the_cue_is_a_region_of_its_own(shapes, function):
    metrics = {"cue": EnergyPointingGame(region="shortcut_mask"), "object": EnergyPointingGame()}
    results = evaluate(function(stub), {"cue": known(shapes, "shortcut_mask")}, metrics, shapes, **OPTIONS)
    marked = known(shapes, "shortcut_mask").maps.flatten(1).any(1)
    assert 0 < marked.sum() < 96
    assert results["cue", "cue"].mean == 100
    assert results["cue", "object"].mean == 0
    assert results["cue", "cue"].n_invalid == int((~marked).sum())
    assert f"all methods, cue: {int((~marked).sum())} rows have no annotated region" in str(results)


def test_any_batches_and_an_interrupted_cache_give_the_same(shapes, network, tmp_path):
    network = network.float()
    metrics = {"ep": EnergyPointingGame(), "le": LocalizationError(iou=True)}
    options = {**OPTIONS, "max_images": 20, "target": "pred"}
    whole = evaluate(network, GradCAM("3"), metrics, shapes, **options)
    for size in (3, 7):
        loader = DataLoader(shapes.splits["val"], batch_size=size)
        for _ in range(2):
            parts = evaluate(network, GradCAM("3"), metrics, loader, cache=tmp_path / str(size), **options)
            for name in metrics:
                assert_close(parts.per_image("gradcam", name), whole.per_image("gradcam", name))


def test_other_masks_are_another_evaluation_for_the_cache(shapes, network, tmp_path):
    class Other(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            item = shapes.splits["val"][index]
            return {**item, "mask": ~item["mask"]}

    options = {**OPTIONS, "target": "pred", "cache": tmp_path}
    part = torch.utils.data.Subset(shapes.splits["val"], range(4))
    evaluate(network.float(), GradCAM("3"), EnergyPointingGame(), part, **options)
    with pytest.raises(ValueError, match="expected a cache of the same evaluation"):
        evaluate(network.float(), GradCAM("3"), EnergyPointingGame(), Other(), **options)


def test_ragged_boxes_are_cut_with_their_images(network, images, target):
    boxes = [torch.tensor([[0.0, 0, 4, 4]] * n) for n in (1, 2, 0, 3, 1)]
    stream = iter([{"image": images, "target": target, "boxes": boxes, "name": list("abcde")}])
    results = evaluate(network, GradCAM("3"), LocalizationError(iou=True), stream, max_images=4, **OPTIONS)
    assert results.per_image("gradcam", "localization_error").isnan().tolist() == [False, False, True, False]
    assert annotations_of({"boxes": boxes, "prob": target, "mask": None}) == {"boxes": boxes}


def test_each_class_of_an_image_has_its_own_boxes(network, images):
    """Image 0 holds classes 0 and 2, one in each half; a constant map has its energy evenly on both."""
    target = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]])
    boxes = torch.tensor([[[0.0, 0, 8, 3], [0, 3, 8, 12]], [[0, 0, 8, 6], [torch.nan] * 4]])
    batch = {"image": images[:2], "target": target, "boxes": boxes, "box_target": torch.tensor([[0, 2], [1, -1]])}
    ones = Known(torch.ones(1, 12, 8) - torch.eye(12, 8) * 1e-6, torch.zeros(1, 4))
    results = evaluate(network, {"ones": ones}, EnergyPointingGame(), [batch], multilabel=True, **OPTIONS)
    assert results.classes.tolist() == [0, 2, 1]
    assert_close(results.per_image("random", "energy_pointing_game").sum() > 0, torch.tensor(True))
    kept = evaluate(network, {"ones": ones}, PointingGame(ties="fraction"), [batch], multilabel=True, **OPTIONS)
    assert_close(kept.per_image("ones", "pointing_game")[:2].sum().float(), torch.tensor(100.0), atol=30, rtol=0)


@pytest.mark.parametrize("metric", [PointingGame(), LocalizationError(), PixelF1(region="boxes"), OfficialMetric()])
def test_without_annotations_the_metric_is_named(network, images, target, metric):
    name = type(metric).__name__
    with pytest.raises(ValueError, match=f"in the batch for {name}, got none; make batches dicts that carry them"):
        evaluate(network, GradCAM("3"), metric, (images, target), **OPTIONS)


def test_the_saliency_metric_needs_no_annotation(network, images, target):
    results = evaluate(network, GradCAM("3"), [SaliencyMetric(), AverageDrop()], (images, target), **OPTIONS)
    assert results["gradcam", "saliency_metric"].n == 5


def test_a_run_measures_a_batch_with_its_annotations(network, images, target):
    """Other entries of the batch are left out by `annotations_of`, as in the callback."""
    work = EvaluationRun(network, {"g": GradCAM("3")}, {"ep": EnergyPointingGame()}, "label", False, None, None)
    rest = {"mask": images[:, 0] > 0, "name": ["a"] * 5, "prob": target, "weights": 3}
    part = work.measure(0, list(range(5)), Picked(images, target, 0, 1, rest), True)
    assert isinstance(part, Part)
    assert part.values["g"]["ep"].shape == (5, 1)
    plain = EvaluationRun(network, {"g": GradCAM("3")}, {"ad": AverageDrop()}, "label", False, None, None)
    picked = Picked(images, target, 0, 1, {})
    assert plain.measure(0, list(range(5)), picked, True).values["g"]["ad"].isfinite().all()


def test_feeds_read_as_before_or_with_annotations(images, target):
    source = BatchSource([{"image": images, "target": target, "mask": images[:, 0] > 0}])
    number, indices, x, y = next(source.read(lambda _: True))
    assert (number, indices) == (0, list(range(5)))
    assert list(next(source.read_annotated(lambda _: True))[4]) == ["mask"]
    assert torch.equal(x, images)
    assert torch.equal(y, target)


@pytest.mark.slow
def test_maps_of_a_network_that_learned_a_shortcut_point_at_the_cue():
    """Grad-CAM has more energy on the mark than a random map, and gains more there than on the object."""
    from interpretable_training.metrics import memorize
    from interpretable_training.models.tiny import TinyCNN

    data = ShapesDataModule(image_size=32, n_train=1200, n_val=120, batch_size=1200, annotations=True, shortcut=1.0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TinyCNN(6, width=8)
        memorize(network, batch["image"], batch["target"], accuracy=0.9, max_epochs=40, learning_rate=3e-3)
    metrics = {"cue": EnergyPointingGame(region="shortcut_mask"), "object": EnergyPointingGame()}
    results = evaluate(network, GradCAM(), metrics, data, **OPTIONS)
    assert results["gradcam", "cue"].low > 1.3 * results["random", "cue"].high
    gains = {name: results["gradcam", name].mean / results["random", name].mean for name in metrics}
    assert gains["cue"] > gains["object"]


RESTRICTED = {"resamples": 5, "progress": False, "controls": False, "target": "pred"}


@pytest.fixture
def batch(images):
    """The object of image 4 is nowhere."""
    boxes = torch.tensor([[2.0, 3.0, 6.0, 9.0]]).repeat(5, 1, 1)
    boxes[4] = torch.nan
    return {"image": images, "boxes": boxes}


@pytest.fixture
def run(network, batch):
    def measured(methods, metrics, **changes):
        return evaluate(network, methods, metrics, [{**batch, **changes}], **RESTRICTED)

    return measured


def test_inside_and_outside_add_up_to_the_map(run):
    """The complexity of a map is its mean."""
    results = run(box_rows({"g": Gradient()}), Complexity())
    inside, outside, whole = (results.per_image(name, "complexity") for name in ("g inside", "g outside", "g"))
    assert_close((inside + outside)[:4], whole[:4])
    assert [part[4].isnan().item() for part in (inside, outside, whole)] == [True, True, False]
    assert_close(results.per_image("box", "complexity")[:4], torch.full((4,), 24 / 96).double())
    assert_close(results.per_image("outside the box", "complexity")[:4], torch.full((4,), 72 / 96).double())
    assert "outside the box, g inside, g outside, complexity: 1 rows are not numbers and left" in results.to_text()


def test_a_map_that_is_1_has_the_box_as_its_inside(run):
    """But for the corner that Fake-CAM leaves out, which is not inside."""
    results = run(box_rows([FakeCAM()]), AverageDrop())
    assert_close(
        results.per_image("fakecam inside", "average_drop"), results.per_image("box", "average_drop"), equal_nan=True
    )


def test_a_box_as_large_as_the_image_hides_nothing(run):
    boxes = torch.tensor([[0.0, 0.0, 8.0, 12.0]]).repeat(5, 1, 1)
    results = run(
        {"box": Restricted(), "cam": GradCAM("3"), "in": Restricted(GradCAM("3"))}, AverageDrop(), boxes=boxes
    )
    assert results["box", "average_drop"].mean == 0
    assert_close(results.per_image("in", "average_drop"), results.per_image("cam", "average_drop"))


def test_a_mask_may_tell_the_region(run, images):
    mask = images[:, 0] > 0
    results = run({"mask": Restricted(region="mask")}, Complexity(), mask=mask)
    assert_close(results.per_image("mask", "complexity"), mask.double().mean((1, 2)))


def test_a_method_and_its_parts_are_explained_once(network, batch):
    calls = Tally()

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(torch.is_grad_enabled() and x.requires_grad)
            return network(x)

    methods = {"g": Gradient(), "in": Restricted(Gradient()), "out": Restricted(Gradient(), "outside")}
    evaluate(Counted(), methods, Complexity(), [batch], **RESTRICTED)
    assert sum(calls) == 1


def test_metrics_that_explain_again_restrict_again(network, batch, run):
    """With a box around everything the parts are the whole, also in what is explained again."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 12.0]]).repeat(5, 1, 1)
    results = run({"g": Gradient(), "in": Restricted(Gradient())}, Coherency(), boxes=boxes)
    assert_close(results.per_image("in", "coherency"), results.per_image("g", "coherency"))


def test_without_boxes_it_is_said(run, network, images):
    with pytest.raises(ValueError, match=r"expected 'boxes' in the batch for Restricted\(.*, got none; make batches"):
        evaluate(network, Restricted(), Complexity(), [{"image": images}], **RESTRICTED)
    with pytest.raises(TypeError, match="expected Restricted among the methods of evaluate"):
        Restricted(Gradient())(network, images)
    with pytest.raises(ValueError, match=r"expected Restricted\.part to be one of"):
        Restricted(part="beside")
    with pytest.raises(TypeError, match=r"expected method of Restricted as Attribution or nothing, got 'gradcam'"):
        Restricted("gradcam")
