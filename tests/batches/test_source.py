"""Whatever a user has at hand gives the same batches, and with them the same table."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from interpretable_training.attribution import GradCAM
from interpretable_training.batches.source import BatchSource
from interpretable_training.metrics import AverageDrop, Complexity, Insertion, evaluate

N = 7
X = torch.arange(N * 3 * 8 * 6, dtype=torch.float32).view(N, 3, 8, 6).sin()
Y = torch.tensor([0, 3, 1, 1, 2, 0, 3])


class Dicts(Dataset):
    """Items with more than is asked for."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"image": X[i], "target": int(Y[i]), "mask": X[i, 0] > 0, "path": f"{i}.png"}


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y)


class Reversed(DataLoader):
    """A loader whose batches are not those that its sampler tells."""

    def __iter__(self):
        yield from reversed(list(super().__iter__()))


class Module:
    """A data module without a trainer."""

    def __init__(self, **options):
        self.options, self.stages = options, []

    def prepare_data(self):
        self.stages.append("prepare")

    def setup(self, stage):
        self.stages.append(stage)

    def val_dataloader(self):
        return DataLoader(TensorDataset(X, Y), **self.options)

    test_dataloader = val_dataloader


def generator():
    yield from zip(X.split(3), Y.split(3))


DATA = TensorDataset(X, Y)
SOURCES = {
    "pair": lambda: (X, Y),
    "list pair": lambda: [X, Y],
    "data set": lambda: DATA,
    "loader": lambda: DataLoader(DATA, batch_size=2),
    "loader of one": lambda: DataLoader(DATA),
    "shuffled loader": lambda: DataLoader(DATA, batch_size=3, shuffle=True),
    "loader that drops": lambda: DataLoader(DATA, batch_size=4, drop_last=True),
    "random sampler": lambda: DataLoader(DATA, batch_size=3, sampler=RandomSampler(DATA)),
    "share of a process": lambda: DataLoader(DATA, 3, sampler=DistributedSampler(DATA, 2, 1)),
    "subset of all": lambda: DataLoader(DATA, 3, sampler=SubsetRandomSampler(range(N))),
    "subset": lambda: torch.utils.data.Subset(DATA, range(N)),
    "worker": lambda: DataLoader(DATA, batch_size=3, shuffle=True, num_workers=1),
    "dicts": Dicts,
    "loader of dicts": lambda: DataLoader(Dicts(), batch_size=2, shuffle=True),
    "module": lambda: Module(batch_size=2),
    "shuffled module": lambda: Module(batch_size=5, shuffle=True),
    "batches": lambda: list(zip(X.split(2), Y.split(2))),
    "batches of lists": lambda: [[x, y] for x, y in zip(X.split(4), Y.split(4))],
    "batches of dicts": lambda: [{"image": x, "target": y, "id": 3} for x, y in zip(X.split(4), Y.split(4))],
    "empty batches between": lambda: [(X[:0], Y[:0]), (X[:3], Y[:3]), (X[:0], Y[:0]), (X[3:], Y[3:])],
    "generator": generator,
    "stream": Stream,
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=2),
    "one item per batch": lambda: DataLoader(list(zip(X.split(2), Y.split(2))), batch_size=None),
}


def measured(network, data, **options):
    metrics = {"ad": AverageDrop(), "insertion": Insertion(steps=3), "complexity": Complexity()}
    return evaluate(network.float(), GradCAM("3"), metrics, data, resamples=20, progress=False, **options)


def same_numbers(a, b, atol=0.0):
    assert a.images.tolist() == b.images.tolist()
    assert a.classes.tolist() == b.classes.tolist()
    for name in a.values:
        for key, numbers in a.values[name].items():
            assert_close(numbers, b.values[name][key], rtol=0, atol=atol)


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_table(network, expected, source):
    results = measured(network, SOURCES[source]())
    expected.setdefault("table", results)
    same_numbers(results, expected["table"], atol=1e-4)
    for key, cell in results.cells.items():
        assert_close(cell.mean, expected["table"][key].mean, rtol=1e-5, atol=1e-4)
        assert_close(cell.low, expected["table"][key].low, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("source", [key for key in SOURCES if key not in ("batches", "generator", "stream")])
def test_every_source_is_cut_at_max_images(source):
    source = BatchSource(SOURCES[source](), max_images=4)
    read = [
        (i, x, y)
        for _, indices, images, target in source.read(lambda _: True)
        for i, x, y in zip(indices, images, target)
    ]
    assert len(read) == 4
    for i, x, y in read:
        assert torch.equal(x, X[i])
        assert y == Y[i]


def test_max_images_are_chosen_by_the_seed_whatever_the_loader(network):
    def chosen(data, seed):
        return [i for part in BatchSource(data, 4, seed=seed).plan for i in part]

    first = chosen(DATA, 0)
    assert first == sorted(set(first))
    assert all(chosen(SOURCES[key](), 0) == first for key in ("pair", "shuffled loader", "worker", "shuffled module"))
    assert len({tuple(chosen(DATA, seed)) for seed in range(8)}) > 4
    assert chosen(DATA, 3) == chosen(DATA, 3)
    assert [i for part in BatchSource(DATA, 99).plan for i in part] == list(range(N))
    results = measured(network, DATA, max_images=4)
    assert results.images.tolist() == first
    assert results.classes.tolist() == Y[first].tolist()


def test_every_image_is_chosen_as_often_as_the_others():
    counts = torch.zeros(N)
    for seed in range(700):
        counts[[i for part in BatchSource(DATA, 2, seed=seed).plan for i in part]] += 1
    assert counts.min() > 200 - 4 * 200**0.5
    assert counts.max() < 200 + 4 * 200**0.5


def test_a_sampler_of_some_images_gives_these_in_order():
    loader = DataLoader(DATA, 2, sampler=SubsetRandomSampler([5, 1, 3]))
    assert BatchSource(loader).plan == [[1, 3], [5]]
    assert {i for part in BatchSource(loader, 2).plan for i in part} < {1, 3, 5}
    empty = DataLoader(DATA, 2, sampler=SubsetRandomSampler([]))
    assert BatchSource(empty).plan == []


def test_loaders_with_unknown_indices_are_read_in_their_order():
    for loader in (
        Reversed(DATA, batch_size=4),
        DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * N, 3)),
        DataLoader(DATA, batch_sampler=[[3, 1], [2]]),
        DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True, num_samples=20)),
    ):
        assert BatchSource(loader).plan is None
    read = list(BatchSource(Reversed(DATA, batch_size=4)).read(lambda _: True))
    assert [indices for _, indices, _, _ in read] == [[0, 1, 2], [3, 4, 5, 6]]
    assert torch.equal(read[0][2], X[4:])


def test_streams_are_read_no_further_than_needed():
    taken = []

    def batches():
        for start in (0, 2, 4, 6):
            taken.append(start)
            yield X[start : start + 2], Y[start : start + 2]

    read = list(BatchSource(batches(), max_images=4).read(lambda _: True))
    assert taken == [0, 2]
    assert [indices for _, indices, _, _ in read] == [[0, 1], [2, 3]]


def test_wanted_batches_keep_their_numbers_and_indices():
    for source in ("loader", "batches"):
        read = list(BatchSource(SOURCES[source]()).read(lambda number: number % 2 == 1))
        assert [(number, indices) for number, indices, _, _ in read] == [(1, [2, 3]), (3, [6])]


def test_images_alone_need_no_target_for_the_predicted_class(network):
    reference = measured(network, (X, Y), target="pred")
    sources = [X.split(3), [X[:4], X[4:]], TensorDataset(X), DataLoader(list(X), 2), [(X,)]]
    sources += [[{"image": X}], [{"picture": X}]]
    for data in sources:
        same_numbers(measured(network, data, target="pred"), reference, atol=1e-4)
        with pytest.raises(ValueError, match="got images alone; pass target='pred'"):
            measured(network, data)


def test_a_data_module_is_prepared_and_set_up_for_its_split():
    module = Module()
    BatchSource(module)
    BatchSource(module, split="test")
    assert module.stages == ["prepare", "validate", "prepare", "test"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (X, TypeError, "or batches as data, got a Tensor"),
        ("folder", TypeError, "or batches as data, got a str"),
        ({"image": X}, TypeError, r"got a dict with {'image': '\(7, .* of float32'}"),
        (3, TypeError, "got a int"),
        ((X, Y[:3]), ValueError, "expected as many targets as images, got 3 for 7 images"),
        ([(X, Y, Y)], TypeError, r"\(images, target\).*, got a tuple of \['\(7, .* of float32', '\(7,\) of int64', '"),
        ([DataLoader(DATA)], TypeError, "got a DataLoader"),
        ([{"picture": Y}], TypeError, "'image' and 'target', got a dict with {'picture'"),
        ([{"picture": X, "same": X, "label": Y}], TypeError, "'image' and 'target', got a dict with {'picture'"),
        ([(X, Y[:3])], ValueError, "expected one target per image, got 3 targets for 7 images"),
        ([(X, Y.float())], ValueError, r"expected targets \(B,\) of class numbers, got \(7,\) of torch.float32"),
        ([(X, Y[:, None])], ValueError, r"expected targets \(B,\) of class numbers, got \(7, 1\)"),
        ([(X, Y > 1)], TypeError, "expected class indices as target, got torch.bool"),
        ([(X, Y + 1)], ValueError, "expected a target from 0 to 3, since the model has 4 logits, got 1 to 4"),
        ([(X, Y - 1)], ValueError, "got -1; classes count from 0"),
        ([(X.byte(), Y)], TypeError, "expected floating point images"),
        ([], ValueError, "expected at least one image"),
        ((X[:0], Y[:0]), ValueError, "expected at least one image"),
        (iter(()), ValueError, "expected at least one image"),
    ],
)
def test_a_mistake_in_the_data_is_a_sentence(network, data, error, message):
    with pytest.raises(error, match=message):
        measured(network, data)


def test_batches_of_other_names_are_read_as_callbacks_read_them(network):
    named = [{"pixel_values": X[:4], "labels": Y[:4]}, {"pixel_values": X[4:], "labels": Y[4:]}]
    same_numbers(measured(network, named), measured(network, [(X[:4], Y[:4]), (X[4:], Y[4:])]))


def test_counts_and_splits_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="expected max_images of at least 1, got 0"):
        BatchSource(DATA, 0)
    with pytest.raises(ValueError, match="expected split to be one of"):
        BatchSource(DATA, split="train")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_targets_of_any_whole_numbers_do(network, dtype):
    same_numbers(measured(network, (X, Y.to(dtype))), measured(network, (X, Y)))
