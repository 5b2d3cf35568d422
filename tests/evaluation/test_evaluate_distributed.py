"""Two processes share the batches and get the table of one."""

import time
import warnings
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from interpretable_training.attribution import Attribution, GradCAM, LayerCAM, SmoothGrad
from interpretable_training.metrics import ADCC, ROAD, AverageDrop, Insertion, evaluate

X = torch.arange(10 * 3 * 8 * 6, dtype=torch.float32).view(10, 3, 8, 6).sin()
Y = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 2, 1])
DATA = TensorDataset(X, Y)
METRICS = {"ad": AverageDrop(), "insertion": Insertion(steps=3), "road": ROAD((40,)), "adcc": ADCC(average="dataset")}


@dataclass(frozen=True)
class Stops(Attribution):
    """Ctrl-C in the process that gets an image; the cache, which knows it by its repr, sees no difference."""

    at: int = field(default=-1, repr=False)

    def attribute(self, prepared, images, target):
        if self.at >= 0:
            store = dist.distributed_c10d._get_default_store()
            if any(torch.equal(image, X[self.at]) for image in images):
                store.wait(["began"])  # by the other process, which has something to show then
                raise KeyboardInterrupt
            store.set("began", "yes")
        return images.abs().mean(1)


@dataclass(frozen=True)
class Slow(Attribution):
    """Takes longer in the second process."""

    calls: list = field(default_factory=list, repr=False)

    def attribute(self, prepared, images, target):
        self.calls.append(len(images))
        if dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(0.4)
        return images.abs().mean(1)


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 4)
        ).train()


def measured(data, methods=None, **options):
    methods = methods or [GradCAM(), LayerCAM(), SmoothGrad(n=2)]
    return evaluate(model(), methods, METRICS, data, resamples=20, progress=False, **options)


CASES = {
    "even": lambda: DataLoader(DATA, batch_size=5),
    "odd": lambda: DataLoader(DATA, batch_size=4, shuffle=True),
    "one batch": lambda: DataLoader(DATA, batch_size=16),
    "shared already": lambda: DataLoader(DATA, 3, sampler=DistributedSampler(DATA, 2, 1)),
    "some": lambda: DataLoader(DATA, 2, sampler=SubsetRandomSampler([7, 1, 3])),
    "batches": lambda: list(zip(X.split(3), Y.split(3))),
    "drawn anew each time": lambda: DataLoader(DATA, 3, sampler=WeightedRandomSampler([1.0] * 10, 8)),
}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        tables = {name: measured(make()) for name, make in CASES.items()}
        tables["wrapped"] = evaluate(
            nn.parallel.DistributedDataParallel(model()), GradCAM(), METRICS, DATA, resamples=20, progress=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables["stopped"] = measured(CASES["odd"](), Stops(5), cache=f"{folder}/cache")
        slow = Slow()
        table = evaluate(model(), slow, AverageDrop(), DataLoader(DATA, 1), controls=False, resamples=5, progress=False)
        tables["slow"] = (len(slow.calls), table.images.tolist())
        tables["goes on"] = measured(CASES["odd"](), cache=f"{folder}/begun")
        torch.save(tables, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def numbers(cell):
    return [value for value in vars(cell).values() if not isinstance(value, str)]


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(tmp_path):
    begun = measured(CASES["odd"](), cache=tmp_path / "begun")
    (tmp_path / "begun" / "part-000001.pt").unlink()
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    for name, make in CASES.items():
        expected = measured(make())
        for table in (first[name], second[name]):
            assert table.images.tolist() == expected.images.tolist()
            assert table.classes.tolist() == expected.classes.tolist()
            assert table.facts == expected.facts
            for key, cell in expected.cells.items():
                assert_close(numbers(table[key]), numbers(cell), rtol=1e-6, atol=1e-6, equal_nan=True)
            assert_close(table.curves, expected.curves, rtol=1e-6, atol=1e-6)
    expected = evaluate(model(), GradCAM(), METRICS, DATA, resamples=20, progress=False)
    assert first["wrapped"].to_csv() == second["wrapped"].to_csv() == expected.to_csv()

    # Image 5 is in batch 1, at which one process stops; the other one has batch 0, and stops after that at which it is.
    assert first["stopped"].images.tolist() == second["stopped"].images.tolist()
    assert not first["stopped"].complete
    assert not second["stopped"].complete
    assert first["stopped"].images.tolist() in ([0, 1, 2, 3], [0, 1, 2, 3, 8, 9])
    whole = measured(CASES["odd"](), Stops(), cache=tmp_path / "cache")
    assert whole.complete
    assert whole.to_csv() == measured(CASES["odd"](), Stops()).to_csv()

    (calls, images), (slow_calls, others) = first["slow"], second["slow"]
    assert images == others == list(range(10))
    assert calls + slow_calls == 10
    assert calls > slow_calls  # who is done first takes what is left
    assert first["goes on"].to_csv() == second["goes on"].to_csv() == begun.to_csv()
