"""What every metric is as a torchmetrics metric: sums, exact under any batching, that can be copied and kept."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jsonargparse import ArgumentParser
from support.every_metric import EACH_IMAGE_ALONE, MAKE, batch, same_sums, sums, where
from torch import nn
from torch.testing import assert_close
from torchmetrics import Metric, MetricCollection

import interpretable_training.metrics as metrics
from interpretable_training.attribution import GradCAM
from interpretable_training.metrics import AverageDrop, AverageDropInDeletion, AverageIncrease, Deletion
from interpretable_training.metrics.core.base import ImageMetric, same_passport


@pytest.fixture(params=EACH_IMAGE_ALONE)
def make(request):
    return MAKE[request.param]


@pytest.fixture
def whole(network, images, saliency, target):
    """All that update may be given."""
    return {"model": network, "images": images, "saliency": saliency, "target": target}


def rows(whole, index):
    return {name: value if isinstance(value, nn.Module) else value[index] for name, value in whole.items()}


def updated(make, whole, *parts):
    metric = make()
    for part in parts or (slice(None),):
        metric.update(**batch(metric, **rows(whole, part)))
    return metric


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 2, 0, 3, 1]]], ids=str)
def test_any_batching_and_any_order_give_the_same_sums(make, whole, parts):
    same_sums(updated(make, whole, *parts), updated(make, whole))


def test_the_mean_is_that_of_the_values(make, whole):
    metric = make()
    values = metric.measure(**batch(metric, **whole))
    assert values.shape == (5,)
    assert not sums(metric)["count"]  # nothing was added
    if metric.columns == 1:
        assert_close(updated(make, whole).compute(), values.mean().float())


def test_chunks_do_not_matter(make, whole):
    one = updated(make, whole)
    metric = make()
    metric.chunk_size = 2
    metric.update(**batch(metric, **whole))
    same_sums(metric, one)


def test_forward_returns_the_value_of_the_batch_and_adds_it(make, whole):
    metric = make()
    first = metric(**batch(metric, **rows(whole, slice(2))))
    assert_close(first, updated(make, whole, slice(2)).compute())
    second = metric(**batch(metric, **rows(whole, slice(2, 5))))
    assert_close(second, updated(make, whole, slice(2, 5)).compute())
    same_sums(metric, updated(make, whole))


def test_reset_starts_again(make, whole):
    metric = updated(make, whole)
    metric.reset()
    same_sums(metric, make())
    metric.update(**batch(metric, **whole))
    same_sums(metric, updated(make, whole))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_where_the_original_was(make, whole, copied):
    metric = updated(make, whole, slice(2))
    twin = copied(metric)
    assert twin.passport() == metric.passport()
    twin.update(**batch(twin, **rows(whole, slice(2, 5))))
    same_sums(twin, updated(make, whole))
    same_sums(metric, updated(make, whole, slice(2)))


def test_a_state_dict_restores_the_sums(make, whole):
    metric = updated(make, whole, slice(2))
    assert metric.state_dict() == {}
    metric.persistent(True)
    twin = make()
    twin.persistent(True)
    twin.load_state_dict(metric.state_dict())
    twin.update(**batch(twin, **rows(whole, slice(2, 5))))
    same_sums(twin, updated(make, whole))


def test_merging_equals_one_metric(make, whole):
    metric = updated(make, whole, slice(2))
    metric.merge_state(updated(make, whole, slice(2, 5)))
    same_sums(metric, updated(make, whole))


def test_only_equal_passports_merge():
    p, o = torch.tensor([0.5]), torch.tensor([0.25])
    metric, absolute = AverageDrop(), AverageDrop(relative=False)
    metric.update(p, o)
    absolute.update(p, o)
    with pytest.raises(ValueError, match=r"same passport, got .*relative: True and False"):
        metric.merge_state(absolute)
    with pytest.raises(ValueError, match="same passport"):
        metric.merge_state(AverageIncrease())
    other = AverageDrop(chunk_size=3)  # which changes no number
    other.update(p, p)
    metric.merge_state(other)
    assert_close(metric.compute(), torch.tensor(25.0))


def test_states_of_another_passport_do_not_merge_as_a_dict_either():
    metric, absolute = AverageDrop(), AverageDrop(relative=False)
    for m in (metric, absolute):
        m.update(torch.tensor([0.5]), torch.tensor([0.25]))
    with pytest.raises(ValueError, match="passport"):
        metric.merge_state(sums(absolute))


def test_a_collection_gives_each_what_it_takes(whole):
    collection = MetricCollection({name: make() for name, make in MAKE.items()})
    collection.update(**whole, **where(whole["images"]), loss=torch.tensor(1.0))
    values = collection.compute()
    assert set(values) == set(MAKE)
    for name, make in MAKE.items():
        assert_close(values[name], updated(make, whole).compute())


def test_collection_updates_metrics_of_unequal_options():
    """Both drops are 0 after the first batch; were they taken for one, the second would be wrong."""
    collection = MetricCollection(
        {
            "relative": AverageDrop(),
            "absolute": AverageDrop(relative=False),
            "clamped": AverageDropInDeletion(clamp=True),
            "topk": AverageDrop(topk=50),
        }
    )
    same = torch.tensor([0.5])
    collection.update(prob=same, prob_masked=same, prob_deleted=same)
    assert len(collection.compute_groups) == 4
    collection.update(prob=same, prob_masked=same / 2, prob_deleted=same)
    values = {name: value.item() for name, value in collection.compute().items()}
    assert values == {"relative": 25, "absolute": 12.5, "clamped": 0, "topk": 25}


def test_a_collection_of_curves_keeps_each_convention_apart(constant, images, saliency):
    """Of a constant model all have the same area."""
    metrics = {
        "steps": Deletion(5),
        "more": Deletion(6),
        "ties": Deletion(5, ties="index"),
        "random": Deletion(5, ties="random"),
        "seed": Deletion(5, ties="random", seed=1),
        "axis": Deletion(5, x_axis="fraction"),
        "min": Deletion(5, substrate="min"),
    }
    collection = MetricCollection(metrics)
    collection.update(model=constant, images=images, saliency=saliency, target=1)
    assert len(collection.compute_groups) == len(metrics)


def test_an_adapted_metric_is_not_taken_for_the_one_it_came_from(scored):
    """Both drops are 0 for a map of ones; a map of zeros shows one the mean color, 0, the other black, -2."""
    model, x = scored(lambda z: z.flatten(1).mean(1).sigmoid()), torch.ones(1, 1, 2, 2).double()
    plain = AverageDrop()
    collection = MetricCollection({"plain": plain, "adapted": plain.adapted((0.5,), (0.25,), False)})
    for S in (torch.ones(1, 2, 2), torch.zeros(1, 2, 2)):
        collection.update(model=model, images=x, saliency=S, target=1)
    values, p = collection.compute(), torch.tensor([1.0, 0, -2]).sigmoid()
    assert_close(values["plain"], 50 * (p[0] - p[1]) / p[0])
    assert_close(values["adapted"], 50 * (p[0] - p[2]) / p[0])


def test_equal_metrics_may_share_their_work():
    collection = MetricCollection({"a": AverageDrop(), "b": AverageDrop()})
    for o in (0.5, 0.25):
        collection.update(prob=torch.tensor([0.5]), prob_masked=torch.tensor([o]))
    assert {name: value.item() for name, value in collection.compute().items()} == {"a": 25, "b": 25}


def test_sums_of_many_images_are_exact():
    """A million drops of a tenth of a percent; in single precision the sum would be wrong by a thousandth."""
    metric = AverageDrop()
    p = torch.ones(10_000).double()
    for _ in range(100):
        metric.update(p, p * 0.999)
    assert abs(float(metric.total) / 1e6 - 0.1) < 1e-9


@pytest.mark.parametrize("convert", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.bfloat16)])
def test_sums_stay_exact_inside_a_module_of_half_precision(convert):
    """True half precision converts the metrics that hang on a module with it."""
    module = convert(nn.ModuleDict({"metric": AverageDrop(), "layer": nn.Linear(2, 2)}))
    for _ in range(400):
        module["metric"].update(torch.ones(3), torch.full((3,), 0.9))
    assert_close(module["metric"].compute(), torch.tensor(10.0), rtol=1e-5, atol=0)


def test_updates_work_in_and_out_of_inference_mode(make, whole):
    with torch.inference_mode():
        metric = updated(make, whole, slice(2))
        metric.compute()
    metric.update(**batch(metric, **rows(whole, slice(2, 5))))
    same_sums(metric, updated(make, whole))
    metric.reset()
    metric.update(**batch(metric, **whole))


def test_no_graph_is_kept(whole):
    whole = {name: value.requires_grad_() if name in ("images", "saliency") else value for name, value in whole.items()}
    for name, make in MAKE.items():
        metric = updated(make, whole)
        assert not metric.total.requires_grad, name
    metric = AverageDrop()
    metric.update(torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True))
    assert not metric.total.requires_grad


def test_a_metric_of_ones_own_needs_values_and_a_formula():
    class Brightness(ImageMetric):
        higher_is_better = True
        formula = "mean of S"

        def update(self, saliency=None):
            self.collect(saliency=saliency)

    with pytest.raises(NotImplementedError, match="Brightness to implement values"):
        Brightness().update(torch.rand(2, 3, 3))


@pytest.mark.parametrize("name", MAKE)
def test_the_direction_is_stated(name):
    metric = MAKE[name]()
    assert isinstance(metric.higher_is_better, bool)
    errors = ("official_metric", "localization_error", "energy_localization_error", "saliency_metric")
    changed = ("background_accuracy", "top_replaced_accuracy")
    lower = ("average_drop", "deletion", "max_sensitivity", "complexity", "infidelity", *errors, *changed)
    assert metric.higher_is_better == (name not in lower)


pytestmark = pytest.mark.slow  # each process imports torch

PARTS = ([0, 1, 2], [3])  # as many images as it happens


def network():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, 2, 1)
    return nn.Sequential(convolution, nn.ReLU(), *[nn.Identity()] * 2, nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), Pool())


class Pool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def facts(rows):
    generator = torch.Generator().manual_seed(1)
    images, S = torch.randn(4, 3, 12, 8, generator=generator), torch.rand(4, 12, 8, generator=generator)
    S[1], S[3, 0, 0] = 0.5, torch.nan
    return network().eval(), images[rows], S[rows], torch.tensor([0, 1, 2, 3])[rows]


def work(rank, place, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    actual = {}
    for name in EACH_IMAGE_ALONE:
        metric = MAKE[name]()
        metric.update(**batch(metric, *facts(PARTS[rank])))
        value = metric.compute()  # of both
        metric.sync()
        actual[name] = (value.item(), {key: getattr(metric, key) for key in metric._defaults})
        metric.unsync()
        assert int(metric.count + metric.n_invalid) == len(PARTS[rank])
    if rank == 0:
        torch.save(actual, results)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*leaves out")
def test_two_processes_give_what_one_gives(tmp_path):
    mp.spawn(work, (str(tmp_path / "meeting"), str(tmp_path / "found.pt")), nprocs=2)
    actual = torch.load(tmp_path / "found.pt")
    for name in EACH_IMAGE_ALONE:
        value, states = actual[name]
        metric, synced = MAKE[name](), MAKE[name]()
        metric.update(**batch(metric, *facts(slice(None))))
        for key, state in states.items():
            setattr(synced, key, state)
        same_sums(synced, metric, atol=1e-6)
        assert value == pytest.approx(metric.compute().item(), abs=1e-4), name


NAMES = [name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)]
NAMES = [name for name in NAMES if issubclass(getattr(metrics, name), ImageMetric)]
GRAD_CAM = {"class_path": "interpretable_training.attribution.GradCAM", "init_args": {"layer": "0"}}


def build(name, base=Metric, **options):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metric", type=base)
    given = {"class_path": f"interpretable_training.metrics.{name}", "init_args": options}
    return parser.instantiate_classes(parser.parse_object({"metric": given})).metric


def test_every_metric_has_its_tests():
    assert {type(make()).__name__ for make in MAKE.values()} <= set(NAMES)


@pytest.mark.parametrize("base", [Metric, ImageMetric])
@pytest.mark.parametrize("name", sorted({type(make()).__name__ for make in MAKE.values()}))
def test_without_options(name, base):
    built = build(name, base)
    assert type(built) is getattr(metrics, name)
    same_passport(built.passport(), getattr(metrics, name)().passport())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AverageDrop", {"space": "normalized", "relative": False, "topk": 20, "chunk_size": 4}),
        ("AverageDrop", {"preset": "torchcam"}),
        ("AverageIncrease", {"signed": True, "mean": [0.5], "std": [0.25]}),
        ("AverageGain", {"preset": "adcc", "score": "sigmoid"}),
        ("AverageDropInDeletion", {"clamp": True, "topk": 10.5}),
        ("Insertion", {"steps": 28, "preset": "ca_stream", "ties": "random", "seed": 3}),
        ("Deletion", {"substrate": "black", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "x_axis": "fraction"}),
        ("InsertionDeletion", {"substrate": "gaussian", "kernel": 5, "auc": "mean", "score": "logit"}),
        ("AOPC", {"patch": 4, "steps": 3, "substrate": "uniform", "seed": 1}),
        ("ROAD", {"percentages": [10, 50], "score": "accuracy", "noise": 0}),
        ("Coherency", {"rescale": False, "space": "pixel", "mean": [0.5], "std": [0.5]}),
        ("ADCC", {"average": "dataset", "topk": 10, "preset": "thesis"}),
        ("MaxSensitivity", {"radius": 0.1, "n": 3, "raw": True}),
        ("OfficialMetric", {"preset": "casme", "threshold": 0.7, "region": "mask"}),
        ("LocalizationError", {"iou": True, "connectivity": 8, "upstream": True}),
        ("EnergyLocalizationError", {"energy": 0.9, "region": "shortcut_mask"}),
        ("BoxAccuracy", {"preset": "maxboxaccv2", "deltas": [0.5, 0.75]}),
        ("PointingGame", {"ties": "fraction", "tolerance": 3, "region": "boxes"}),
        ("EnergyPointingGame", {"region": "shortcut_mask"}),
        ("PixelF1", {"per_box": True, "upstream": False}),
        ("PxAP", {"steps": 50, "region": "boxes"}),
        ("SaliencyMetric", {"p_on": "image", "score": "sigmoid", "chunk_size": 3}),
        ("PlainAccuracy", {"chunk_size": 3}),
        ("ObjectAccuracy", {"region": "boxes", "substrate": "linear"}),
        ("BackgroundAccuracy", {"substrate": "black", "mean": [0.5], "std": [0.5], "region": "shortcut_mask"}),
        ("OtherBackgroundAccuracy", {"region": "mask", "substrate": "uniform", "seed": 2}),
        ("TopReplacedAccuracy", {"topk": 5, "substrate": "gaussian"}),
    ],
)
def test_options_reach_the_metric(name, options):
    same_passport(build(name, **options).passport(), getattr(metrics, name)(**options).passport())


@pytest.mark.parametrize("name", ["Coherency", "ADCC", "MaxSensitivity"])
def test_a_method_inside_a_metric(name):
    assert build(name, attribution=GRAD_CAM).attribution == GradCAM(layer="0")


@pytest.mark.parametrize("name", ["AverageDrop", "AverageGain", "Insertion", "ADCC", "Complexity"])
def test_options_of_torchmetrics_reach_it(name):
    assert build(name, compute_on_cpu=True).compute_on_cpu is True


@pytest.mark.parametrize("name", ["AverageDrop", "Insertion", "ADCC"])
def test_options_that_do_not_exist_are_refused(name):
    with pytest.raises(Exception, match="spcae"):
        build(name, spcae="pixel")
    with pytest.raises((TypeError, ValueError), match="spcae"):
        getattr(metrics, name)(spcae="pixel")


def test_choices_are_checked_while_parsing():
    with pytest.raises(Exception, match="thesi"):
        build("AverageDrop", preset="thesi")


def test_a_built_metric_measures():
    metric = build("AverageDrop", relative=False)
    metric.update(torch.tensor([0.8]), torch.tensor([0.5]))
    assert metric.compute().item() == pytest.approx(30)
