"""Two processes give what one gives."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.every_metric import MAKE, batch, same_sums
from torch import nn

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
    found = {}
    for name, make in MAKE.items():
        metric = make()
        metric.update(**batch(metric, *facts(PARTS[rank])))
        value = metric.compute()  # of both
        metric.sync()
        found[name] = (value.item(), {key: getattr(metric, key) for key in metric._defaults})
        metric.unsync()
        assert int(metric.count + metric.n_invalid) == len(PARTS[rank])
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*leaves out")
def test_two_processes_give_what_one_gives(tmp_path):
    mp.spawn(work, (str(tmp_path / "meeting"), str(tmp_path / "found.pt")), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    for name, make in MAKE.items():
        value, states = found[name]
        metric, synced = make(), make()
        metric.update(**batch(metric, *facts(slice(None))))
        for key, state in states.items():
            setattr(synced, key, state)
        same_sums(synced, metric, atol=1e-6)
        assert value == pytest.approx(metric.compute().item(), abs=1e-4), name
