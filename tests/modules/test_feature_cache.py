"""Features of a frozen backbone in files: computed once, continued, and noticed when they do not belong."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from support.trainers import quiet_trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from interpretable_training.models import CAStream, Probe, TinyCNN, TinyViT
from interpretable_training.models.probe import Pooling
from interpretable_training.modules import CAStreamClassifier
from interpretable_training.modules.feature_cache import FeatureCache, keys_of


def backbone(seed=0):
    torch.manual_seed(seed)
    return TinyViT(3, image_size=16, dim=8)


def pictures(n=6):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def passes_of(network):
    calls = []
    network.patch_embed.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    return calls


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_cached_features_equal_computed_ones(tmp_path, dtype, error):
    net = CAStream(backbone())
    gap, maps = net.features(pictures(), whole=True)
    cache = FeatureCache(net, tmp_path, dtype)
    for order in (torch.arange(6), torch.tensor([3, 0, 5])):
        cached_gap, cached = cache(pictures()[order])
        assert_close(cached_gap, gap[order])
        for F, expected in zip(cached, maps):
            assert_close(F, expected[order].detach(), rtol=error, atol=error)
    assert cache.misses == 6


def test_keys_change_with_any_bit():
    """32 bits of a pixel in each of 64 images."""
    images = torch.zeros(64, 1, 2, 2)
    bits = images.view(torch.int32).flatten(1)
    for i in range(64):
        bits[i, i // 32] = 1 << (i % 32) if i % 32 < 31 else -(2**31)
    keys = keys_of(images)
    assert len(set(keys)) == 64
    assert keys_of(images) == keys
    assert set(map(len, keys)) == {16}


def test_interrupted_write_continues(tmp_path):
    """Rows without a key, and half a row, are written again; complete rows are not computed again."""
    net = CAStream(backbone())
    FeatureCache(net, tmp_path)(pictures()[:4])
    (folder,) = tmp_path.iterdir()
    keys, column = folder / "0.keys", folder / "0.1"
    keys.write_bytes(keys.read_bytes()[:-20])  # two keys and a half are left
    column.write_bytes(column.read_bytes() + b"half a row")
    calls, cache = passes_of(net.backbone), FeatureCache(net, tmp_path)
    _, cached = cache(pictures())
    assert (cache.misses, sum(calls)) == (4, 4)
    assert_close(cached[1], net.features(pictures())[1][1].detach(), rtol=2e-3, atol=2e-3)
    again = FeatureCache(net, tmp_path)
    assert_close(again(pictures())[1], cached, rtol=0, atol=0)
    assert again.misses == 0


@pytest.mark.parametrize("kind", get_args(Pooling))
def test_probes_of_all_kinds_train_from_the_cache(tmp_path, kind):
    net = Probe(backbone(), 3, kind)
    torch.manual_seed(0)
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "reference_batch": None, "scheduler": None}
    module = CAStreamClassifier(net, 3, cache_features=True, cache_folder=str(tmp_path / "cache"), **options)
    before = net.probe.weight.detach().clone()
    quiet_trainer(tmp_path, max_epochs=2).fit(module, loader(shuffle=False), loader(shuffle=False))
    assert not torch.equal(net.probe.weight, before)


def test_another_backbone_or_data_set_is_noticed(tmp_path):
    net = CAStream(backbone())
    FeatureCache(net, tmp_path)(pictures())
    other = FeatureCache(net, tmp_path)
    other(pictures().flip(3))
    assert other.misses == 6
    net.backbone.norm.bias.data[0] += 1e-6
    changed = FeatureCache(net, tmp_path)
    _, maps = changed(pictures())
    assert changed.misses == 6
    assert_close(maps[-1], net.features(pictures())[1][-1].detach(), rtol=2e-3, atol=2e-3)


def test_processes_read_what_others_wrote(tmp_path):
    net = CAStream(backbone())
    one, other = (FeatureCache(net, tmp_path, rank=rank) for rank in (0, 1))
    one(pictures()[:3])
    other(pictures()[3:])
    one.reset()
    one(pictures())
    assert one.misses == 0


def test_features_beyond_float16_are_refused(tmp_path):
    net = CAStream(backbone())
    net.backbone.norm.weight.data[0] = 1e6
    with pytest.raises(ValueError, match=r"within the range of float16, got .* pass cache_features='bfloat16'"):
        FeatureCache(net, tmp_path)(pictures())
    FeatureCache(net, tmp_path, "bfloat16")(pictures())


def loader(n=6, shuffle=True):
    return DataLoader(list(zip(pictures(n), [i % 3 for i in range(n)])), batch_size=2, shuffle=shuffle)


def module_with(cache_features, tmp_path, **kwargs):
    network = backbone()
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "reference_batch": None, "scheduler": None}
    folder = str(tmp_path / "cache")
    torch.manual_seed(1)
    return CAStreamClassifier(network, 3, cache_features=cache_features, cache_folder=folder, **options, **kwargs)


def test_training_from_cache_equals_training_without(tmp_path):
    """Up to float16; each image passes through the backbone once, also in a second run."""
    streams, counts = [], []
    for cached in (False, True, True):
        module = module_with(cached, tmp_path)
        calls = passes_of(module.network.backbone)
        trainer = quiet_trainer(tmp_path, max_epochs=3)
        trainer.fit(module, loader(shuffle=False), loader(shuffle=False))
        streams.append((module.network.stream.state_dict(), trainer.callback_metrics))
        counts.append(sum(calls))
    assert counts[1:] == [6, 0]
    for state, logged in streams[1:]:
        assert_close(state, streams[0][0], rtol=1e-2, atol=2e-3)
        assert_close(logged["val/own_accuracy"], streams[0][1]["val/own_accuracy"])


class Noisy(Dataset):
    """Images with random noise, or from the second reading on only."""

    def __init__(self, late):
        self.late, self.reads = late, 0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.reads += 1
        noise = 0 if self.late and self.reads <= 6 else torch.randn(3, 16, 16)
        return pictures()[i] + noise, i % 3


@pytest.mark.parametrize(
    ("late", "error", "message"),
    [
        (False, ValueError, "got two views of the first image; remove random augmentation"),
        (True, RuntimeError, "expected the same images in every epoch, got 4 new ones in epoch 1"),
    ],
)
def test_random_augmentation_is_refused(tmp_path, late, error, message):
    with pytest.raises(error, match=message):
        quiet_trainer(tmp_path, max_epochs=3).fit(module_with(True, tmp_path), DataLoader(Noisy(late), batch_size=2))


@pytest.mark.parametrize("given", ["float64", "yes"])
def test_unknown_types_of_cache_are_refused(tmp_path, given):
    with pytest.raises(ValueError, match="expected cache_features as True, False, 'float16' or 'bfloat16'"):
        module_with(given, tmp_path)


def test_trained_backbone_is_not_cached(tmp_path):
    with pytest.raises(ValueError, match="train_backbone=False"):
        module_with(True, tmp_path, stream={"train_backbone": True})


def test_metrics_of_own_pooling_are_named_by_it(tmp_path):
    logged = quiet_trainer(tmp_path).validate(CAStreamClassifier(backbone(), 3), loader(), verbose=False)[0]
    assert "val/own_accuracy" in logged
    assert "val/gap_accuracy" not in logged
    logged = quiet_trainer(tmp_path).validate(
        CAStreamClassifier(TinyCNN(3, width=4), 3, stream={"num_classes": 3, "image_size": 16}), loader(), verbose=False
    )[0]
    assert "val/accuracy" in logged
    assert not any("gap" in name or "own" in name or "None" in name for name in logged)


SCRIPT = """
import sys
from typing import get_args
import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler
from interpretable_training.models import TinyViT
from interpretable_training.modules import CAStreamClassifier

class Data(L.LightningDataModule):  # Lightning's own sampler would shuffle
    def train_dataloader(self):
        images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        items, trainer = list(zip(images, [0, 1, 2, 0, 1, 2])), self.trainer
        sampler = DistributedSampler(items, trainer.world_size, trainer.global_rank, shuffle=False)
        return DataLoader(items, batch_size=2 // trainer.world_size, sampler=sampler)

if __name__ == "__main__":
    processes, folder = int(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "reference_batch": None, "scheduler": None}
    options |= {"cache_features": True, "cache_folder": folder}
    module = CAStreamClassifier(TinyViT(3, image_size=16, dim=8), 3, **options)
    strategy = "ddp" if processes == 2 else "auto"
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet["use_distributed_sampler"] = False
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", devices=processes, strategy=strategy, **quiet)
    trainer.fit(module, Data())
    if trainer.is_global_zero:
        torch.save(module.network.state_dict(), folder + "/stream.pt")
"""


@pytest.mark.slow
def test_two_processes_train_like_one_from_shared_features(tmp_path):
    """Two processes with one image each take the steps of one process with both."""
    script, states = tmp_path / "train.py", []
    script.write_text(SCRIPT)
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        command = [sys.executable, str(script), str(processes), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        states.append(torch.load(folder / "stream.pt"))
        keys = [len(path.read_bytes()) // 16 for path in folder.rglob("*.keys")]
        assert sum(keys) == 6
        assert len(keys) == processes
    assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
