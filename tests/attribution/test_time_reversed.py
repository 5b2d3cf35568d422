"""Time is an axis like any other: where a map says that something lies, it lies.

A bidirectional network whose two directions are exchanged and whose kernels are turned around says of a series read
backwards what the network says of the series. Its maps are the maps, backwards: an index that is off by one, a map that
is resized where it should not be, or a direction that is forgotten would all show.
"""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training import attribution as a
from interpretable_training.models import build_network

KNOWN = torch.randn(6, 3, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
METHODS = {
    "gradcam": a.GradCAM(relu=False),
    "gradcamplusplus": a.GradCAMPlusPlus(),
    "xgradcam": a.XGradCAM(relu=False),
    "hirescam": a.HiResCAM(relu=False),
    "layercam": a.LayerCAM(),
    "ablationcam": a.AblationCAM(),
    "scorecam": a.ScoreCAM(),
    "gradient": a.Gradient(),
    "inputxgradient": a.InputXGradient(),
    "integratedgradients": a.IntegratedGradients(steps=8),
}


@pytest.fixture
def series():
    return torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def net(series):
    torch.manual_seed(0)
    net = build_network("cnn_bilstm", 1, channels=3, width=5, hidden=4, kernel=3).double()
    net(series)
    return net.eval()


def reversed_in_time(net):
    """The network that reads series backwards as `net` reads them forwards."""
    other = copy.deepcopy(net)
    state = {}
    for name, value in net.state_dict().items():
        if name.startswith("lstm."):
            name = name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"
        elif value.ndim == 3:
            value = value.flip(2)
        elif name == "head.weight":
            value = value.roll(value.shape[1] // 2, 1)
        state[name] = value
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("name", METHODS)
def test_a_series_read_backwards_has_its_map_backwards(net, series, name):
    other = reversed_in_time(net)
    assert_close(other(series.flip(2)), net(series))
    for target in (None, 0):
        S, T = METHODS[name](net, series, target), METHODS[name](other, series.flip(2), target)
        assert_close(T.flip(1), S, rtol=1e-4, atol=1e-6)
        if name not in ("gradcamplusplus", "layercam", "ablationcam"):  # which may be 0 of one of the two
            assert S.any()
            assert not torch.allclose(S, S.flip(1))


class Counter(nn.Module):
    """A network that sees one time step: its recurrent part forgets all others."""

    def __init__(self, step, length):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Identity())
        nn.init.ones_(self.features[0].weight)
        self.lstm = nn.LSTM(1, 1, batch_first=True)
        self.step, self.length = step, length

    def forward(self, x):
        A = self.features(x)
        return self.lstm(A.transpose(1, 2)[:, self.step : self.step + 1])[1][0][0]


@pytest.mark.parametrize("step", [0, 4, 8])
@pytest.mark.parametrize("name", ["hirescam", "layercam", "gradient", "inputxgradient"])
def test_a_network_that_reads_one_time_step_has_a_map_of_one_time_step(step, name):
    torch.manual_seed(1)
    net, x = Counter(step, 9).double().eval(), torch.ones(1, 1, 9, dtype=torch.float64)
    method = METHODS[name] if name != "layercam" else a.LayerCAM(relu=False)
    S = torch.maximum(method(net, x).abs(), method(net, x, 0).abs())[0]
    assert S[step] > 0
    assert S.count_nonzero() == 1


def test_a_map_of_the_convolutions_knows_as_many_steps_as_they_do(net, series):
    """Two convolutions of three steps each: what lies three steps away changes no feature."""
    changed = series.clone()
    changed[:, :, 8] += 5
    moved = (net.features(changed) - net.features(series)).abs().amax(1) > 0
    assert moved[:, [5, 11]].any().logical_not()
    assert moved[:, 8].all()
    changed = series.clone()
    changed[:, :, 0] += 5
    moved = (net.features(changed) - net.features(series)).abs().amax(1) > 0
    assert moved[:, 3:].any().logical_not()  # the end of a series does not go on at its beginning
