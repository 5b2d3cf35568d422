"""Networks that several recipes share: what lies in the file is what was asked for, or it is said."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import pytest
import torch

from interpretable_training.models import TinyCNN, build_network
from interpretable_training.recipes import method_table
from interpretable_training.recipes.ca_stream import trained_backbone

QUICK = {"image_size": 16, "n_train": 12, "max_epochs": 1}


def test_network_trained_with_other_options_gives_a_warning(tmp_path):
    path = tmp_path / "runs" / "net.pt"
    net = trained_backbone(str(path), seed=3, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = trained_backbone(str(path), seed=3, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    with pytest.warns(UserWarning, match=r"net\.pt was trained with seed=3 instead of 4; remove the file"):
        trained_backbone(str(path), seed=4, **QUICK)
    with pytest.warns(UserWarning, match=r"shortcut=0\.0 instead of 0\.5"):
        method_table(shortcut=0.5, weights=str(path), image_size=16, n_train=12, backbone_epochs=1, seed=3)
    assert [file.name for file in sorted(path.parent.glob("net*"))] == ["net.json", "net.pt"]
    assert json.loads(path.with_suffix(".json").read_text())["n_train"] == 12


def test_weights_of_unknown_origin_are_read_without_a_word(tmp_path):
    torch.save(TinyCNN(6).state_dict(), tmp_path / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained_backbone(str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:2000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("import torch\n"),
        lambda path: torch.save(build_network("tiny_vit", 6).state_dict(), path),
        lambda path: torch.save(TinyCNN(10).state_dict(), path),
        lambda path: torch.save([1, 2], path),
    ],
    ids=["half", "empty", "text", "another network", "other classes", "a list"],
)
def test_weights_that_do_not_fit_are_named_with_what_to_do(tmp_path, spoil):
    path = tmp_path / "net.pt"
    torch.save(TinyCNN(6).state_dict(), path)
    spoil(path)
    with pytest.raises(RuntimeError, match=r"expected weights of 'tiny_cnn' in .*net\.pt, got: .* remove the file"):
        trained_backbone(str(path))


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_trained_network(tmp_path):
    command = [
        sys.executable,
        "-m",
        "interpretable_training.recipes",
        "method_table",
        "--image_size=16",
        "--max_images=1",
    ]
    command += ["--metrics=localization", "--n_train=6000"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells start background jobs that ignore it
    started = subprocess.Popen([*command, "--backbone_epochs=500"], cwd=tmp_path, preexec_fn=heard, **quiet)
    log = tmp_path / "runs/ca_stream/backbone/baseline/version_0/checkpoints"
    for _ in range(600):
        if log.exists() and any(log.iterdir()):  # after the first of its epochs
            break
        time.sleep(0.2)
    os.kill(started.pid, signal.SIGINT)
    try:
        assert started.wait(120) != 0
    finally:
        started.kill()
    assert not list((tmp_path / "runs/ca_stream").glob("*.pt"))
    assert not (tmp_path / "runs/method_table").exists()
    torch.save(TinyCNN(6).state_dict(), tmp_path / "runs/ca_stream/tiny_cnn.pt")  # what the training would end with
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/method_table/version_0/maps.png").exists()
