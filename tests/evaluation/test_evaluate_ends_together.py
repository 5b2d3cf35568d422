"""One of two processes fails, is interrupted or is alone: both end, with the reason, and the next evaluation works."""

import time
import warnings
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import Attribution
from interpretable_training.evaluation import ranks
from interpretable_training.metrics import AverageDrop, evaluate

N = 40  # batches of one image
DATA = TensorDataset(torch.arange(N * 3 * 8 * 8, dtype=torch.float32).view(N, 3, 8, 8).sin(), torch.arange(N) % 4)
seen = []  # images of this process


class UnsendableError(Exception):
    def __init__(self):
        super().__init__("cannot be sent")
        self.lock = (i for i in [])


@dataclass(frozen=True)
class Does(Attribution):
    """Raises in the second process, when the first one has begun; that takes a moment for each image."""

    error: BaseException | None = field(default=None, repr=False)
    slow: bool = False

    def attribute(self, prepared, images, target):
        seen.append(len(images))
        if self.error is not None:
            began = f"began {type(self.error).__name__}"
            if dist.get_rank() == 1:
                dist.distributed_c10d._get_default_store().wait([began])
                raise self.error
            dist.distributed_c10d._get_default_store().set(began, "yes")
        if self.slow:
            time.sleep(0.05)
        return images.abs().mean(1)


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )


class Gone:
    """Data that the second process does not find."""

    def __init__(self):
        self.mean = self.std = None

    def val_dataloader(self):
        if dist.get_rank() == 1:
            raise FileNotFoundError("no folder 'images' here")
        return DataLoader(DATA, 1)

    def prepare_data(self):
        pass

    def setup(self, stage):
        pass


def measured(error=None, data=None):
    """Return images of the table or the error, warnings, and the number of images this process explained."""
    seen.clear()
    table = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            method = Does(error, slow=error is not None or data is not None)
            data = DataLoader(DATA, 1) if data is None else data
            table = evaluate(model(), method, AverageDrop(), data, resamples=5, progress=False, controls=False)
            printed = table.images.tolist()
        except BaseException as raised:
            printed = f"{type(raised).__name__}: {raised}"
    return {
        "told": printed,
        "complete": table is not None and table.complete,
        "warned": [str(w.message) for w in caught],
        "explained": len(seen),
    }


def alone(rank, patience, late=0.0):
    """The first process calls, the second one later or not at all."""
    ranks.PATIENCE = patience
    try:
        if rank == 0:
            return measured()
        time.sleep(late)
        return measured() if late else {}
    finally:
        ranks.PATIENCE = 60.0
        dist.barrier()


def work(rank, folder, start):
    torch.set_num_threads(1)
    where = f"file://{folder}/store" if start == "file" else start
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    ranks.PATIENCE = 60.0
    try:
        actual = {
            "fails": measured(ZeroDivisionError("of the second process alone")),
            "after it": measured(),
            "unsendable": measured(UnsendableError()),
            "no memory": measured(MemoryError("none left")),
            "ended": measured(SystemExit(3)),
            "no data": measured(data=Gone()),
            "interrupted": measured(KeyboardInterrupt()),
            "alone": alone(rank, 0.5),
            "both after alone": measured(),
            "late": alone(rank, 60.0, late=1.0),
            "too late": alone(rank, 0.5, late=1.5),
            "at last": measured(),
        }
        torch.save(actual, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=["file", "tcp"])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start = "file"
    if request.param == "tcp":
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            start = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.spawn(work, (str(folder), start), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


pytestmark = pytest.mark.slow
ENDS = {
    "fails": "ZeroDivisionError: of the second process alone",
    "unsendable": "UnsendableError: cannot be sent",
    "no memory": "MemoryError: none left",
    "ended": "SystemExit: 3",
    "no data": "FileNotFoundError: no folder 'images' here",
}


@pytest.mark.parametrize("case", ENDS)
def test_the_reason_of_one_process_ends_both(results, case):
    first, second = (result[case] for result in results)
    assert second["told"] == ENDS[case]  # the error itself, with its traceback
    assert (
        first["told"] == f"RuntimeError: expected evaluate to end well in each process, got in process 1 {ENDS[case]}"
    )
    assert first["explained"] + second["explained"] < N  # it ended after the batch at which it was


def test_an_interrupt_of_one_process_leaves_both_the_same_table(results):
    first, second = (result["interrupted"] for result in results)
    assert first["told"] == second["told"]
    assert 0 < first["explained"] == len(first["told"]) < N
    for actual in (first, second):
        assert not actual["complete"]
        assert "interrupted in process 1: the table holds the images that were done" in actual["warned"]


def test_a_process_that_is_alone_ends(results):
    expected = "RuntimeError: expected each of the 2 processes to call evaluate, got 1 within 0 s"
    assert results[0]["alone"]["told"].startswith(expected)
    for result in results:
        assert result["too late"]["told"].startswith(expected)
        assert result["too late"]["explained"] == 0


@pytest.mark.parametrize("case", ["after it", "both after alone", "late", "at last"])
def test_the_next_evaluation_is_whole(results, case):
    for result in results:
        assert result[case]["told"] == list(range(N))
        assert result[case]["complete"]
    assert sum(result[case]["explained"] for result in results) == N
