"""An evaluation that is stopped and goes on gives, bit for bit, the table of one that ran through."""

import copy
import json
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import Attribution, GradCAM, LayerCAM
from interpretable_training.metrics import ADCC, AverageDrop, Insertion, evaluate

N, BATCH = 10, 3
X = torch.arange(N * 3 * 8 * 6, dtype=torch.float32).view(N, 3, 8, 6).sin()
Y = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 2, 1])
LOADER = DataLoader(TensorDataset(X, Y), batch_size=BATCH)
METHODS = {"gradcam": GradCAM("3"), "layercam": LayerCAM("0")}
METRICS = {"ad": AverageDrop(), "insertion": Insertion(steps=4), "adcc": ADCC(average="dataset")}
OPTIONS = {"resamples": 30, "progress": False}


@dataclass(frozen=True)
class Stops(Attribution):
    """Ctrl-C while the batch number `at` is explained."""

    at: int = 2

    def attribute(self, prepared, images, target):
        if BATCH * self.at < N and torch.equal(images[0], X[BATCH * self.at].to(images)):
            raise KeyboardInterrupt
        return images.abs().mean(1)

    def __repr__(self):
        return "Stops()"


@pytest.fixture(autouse=True)
def single(network):
    return network.float()


def same(a, b):
    """Every number, bit for bit."""
    assert (a.facts, a.passports, a.complete, a.controls) == (b.facts, b.passports, b.complete, b.controls)
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.classes, b.classes)
    assert repr(a.cells) == repr(b.cells)
    for name, metrics in a.values.items():
        assert torch.equal(a.degenerate[name], b.degenerate[name])
        for key, numbers in metrics.items():
            assert torch.equal(numbers, b.values[name][key])
            for kind, sums in a.curves[name].get(key, {}).items():
                assert torch.equal(sums, b.curves[name][key][kind])
    assert a.to_csv() == b.to_csv()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_is_done_is_told_after_a_stop_and_kept(network, tmp_path, at):
    methods = {**METHODS, "stops": Stops(at)}
    with pytest.warns(UserWarning, match="interrupted: the table holds the images that were done"):
        partly = evaluate(network, methods, METRICS, LOADER, cache=tmp_path, **OPTIONS)
    assert not partly.complete
    assert partly.images.tolist() == list(range(BATCH * at))
    assert "Stopped before the end" in partly.to_text()
    assert len(list(tmp_path.glob("part-*.pt"))) == at

    methods["stops"] = Stops(99)  # the same to the cache, which knows it by its repr
    whole = evaluate(network, methods, METRICS, LOADER, cache=tmp_path, **OPTIONS)
    same(whole, evaluate(network, methods, METRICS, LOADER, **OPTIONS))
    assert whole.complete
    assert "Stopped" not in whole.to_text()


def test_a_stop_in_the_loader_is_a_stop_too(network):
    def batches():
        yield X[:3], Y[:3]
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        table = evaluate(network, METHODS, METRICS, batches(), **OPTIONS)
    assert (len(table), table.complete) == (3, False)


def test_a_stop_before_anything_is_done_stays_a_stop(network):
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt, match="before the first"):
        evaluate(network, Stops(0), METRICS, LOADER, **OPTIONS)


def test_the_warning_names_the_line_that_called(network):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(network, Stops(1), METRICS, LOADER, **OPTIONS)
    assert [warning.filename for warning in caught if "interrupted" in str(warning.message)] == [__file__]


def test_what_is_done_costs_nothing_again(network, tmp_path):
    first = evaluate(network, METHODS, METRICS, LOADER, cache=tmp_path, **OPTIONS)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    images = []
    network.register_forward_hook(lambda module, args, output: images.append(len(args[0])))
    same(evaluate(network, METHODS, METRICS, LOADER, cache=tmp_path, **OPTIONS), first)
    assert images == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    assert len(times) == 1 + 4  # what it is, and the batches


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of", None], ids=["empty", "garbage", "half"])
def test_a_file_that_cannot_be_read_is_made_again(network, tmp_path, content):
    first = evaluate(network, METHODS, METRICS, LOADER, cache=tmp_path, **OPTIONS)
    part = tmp_path / "part-000001.pt"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tmp_path / "part-000002.tmp").write_bytes(b"left by a crash")
    with pytest.warns(UserWarning, match=r"part-000001\.pt cannot be read .* measured again") as caught:
        same(evaluate(network, METHODS, METRICS, LOADER, cache=tmp_path, **OPTIONS), first)
    assert {warning.filename for warning in caught if "cannot be read" in str(warning.message)} == {__file__}
    assert torch.load(part, weights_only=True)["number"] == 1


def other_weights(network):
    other = copy.deepcopy(network)
    other[8].bias.data[0] += 1e-3
    return {"model": other}


def other_buffers(network):
    other = copy.deepcopy(network)
    other[1].running_mean += 1e-3
    return {"model": other}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "weights: "),
        (other_buffers, "weights: "),
        ({"metrics": {**METRICS, "ad": AverageDrop(topk=50)}}, "ad: mask: 'map' there, 'highest 50 percent"),
        ({"metrics": {**METRICS, "insertion": Insertion(steps=5)}}, "insertion: steps: 4 there, 5 here"),
        ({"metrics": {"ad": AverageDrop()}}, "adcc: formula: .* there, None here"),
        ({"methods": {**METHODS, "layercam": LayerCAM("3")}}, "method layercam: "),
        ({"methods": {"gradcam": GradCAM("3")}}, "method layercam: .* there, None here"),
        ({"controls": False}, "method fakecam: .* there, None here"),
        ({"target": "pred"}, "target: 'label' there, 'pred' here"),
        ({"max_images": 5}, "images: None there, 5 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"output": 0}, "output: None there, '0' here"),
        ({"mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}, "ad: mask_mean: None there, '0.5 0.5 0.5' here"),
        ({"data": DataLoader(TensorDataset(X, Y), batch_size=4)}, "data: "),
        ({"data": DataLoader(TensorDataset(X[:9], Y[:9]), batch_size=BATCH)}, "data: "),
        ({"data": DataLoader(TensorDataset(X + 1, Y), batch_size=BATCH)}, "data: "),
        ({"data": DataLoader(TensorDataset(X, (Y + 1) % 4), batch_size=BATCH)}, "data: "),
    ],
)
def test_a_folder_of_another_evaluation_is_refused_by_what_differs(network, tmp_path, change, named):
    given = {"model": network, "methods": METHODS, "metrics": METRICS, "data": LOADER, "cache": tmp_path, **OPTIONS}
    evaluate(**given)
    before = sorted(path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=rf"a cache of the same evaluation in .*\(.*{named}.*choose another folder"):
        evaluate(**{**given, **(change(network) if callable(change) else change)})
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == before


def test_what_changes_no_number_is_no_other_evaluation(network, tmp_path):
    first = evaluate(network, METHODS, METRICS, LOADER, cache=tmp_path, **OPTIONS)
    shuffled = DataLoader(TensorDataset(X, Y), batch_size=BATCH, shuffle=True, num_workers=1)
    network.train()
    parallel = torch.nn.DataParallel(network)
    options = {"resamples": 30, "progress": True, "reference": "layercam", "chunk_size": 2}
    again = evaluate(parallel, METHODS, METRICS, shuffled, cache=tmp_path, **options)
    assert again.reference == "layercam"
    assert torch.equal(again.values["gradcam"]["ad"], first.values["gradcam"]["ad"])


def test_streams_cannot_be_kept(network, tmp_path):
    with pytest.raises(ValueError, match=r"expected data with a length and an index for cache=, got a stream"):
        evaluate(network, METHODS, METRICS, [(X, Y)], cache=tmp_path, **OPTIONS)


def test_the_folder_says_in_json_what_it_holds(network, tmp_path):
    evaluate(network, METHODS, METRICS, LOADER, cache=tmp_path / "new" / "folder", **OPTIONS)
    facts = json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text())
    assert facts["model"] == "Sequential"
    assert facts["method gradcam"].startswith("GradCAM(layer='3'")
    assert facts["ad: direction"] == "lower is better"
