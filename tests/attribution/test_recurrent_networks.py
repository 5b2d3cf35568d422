"""Convolutions and an LSTM over series: the chosen layer, gradients in train mode, and maps of reversed series."""

import copy
from dataclasses import replace

import pytest
import torch
from support.attributions import METHODS, state
from torch import nn
from torch.testing import assert_close

from interpretable_training import attribution as a
from interpretable_training.attribution import GradCAM, Gradient, explain
from interpretable_training.attribution.core.auto_layer import choose_layer
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.models import build_network

REFUSE = {"cam", "rawattention", "attentionrollout", "transformerattribution"}  # they ask for other networks
BASELINES = torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def series():
    return torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["cnn_lstm", "cnn_bilstm"])
def net(request, series):
    torch.manual_seed(0)
    net = build_network(request.param, 1, channels=3, width=4, hidden=12, kernel=3)  # as many features as time steps
    net(series)
    return net.eval()


class Stacked(nn.Module):
    """Two LSTMs with dropout between them, and nothing else that is spatial."""

    def __init__(self, layer=nn.LSTM):
        super().__init__()
        self.lstm = layer(3, 5, num_layers=2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(1, 2))[0].mean(1))


class Torn(torch.autograd.Function):
    """The identity, whose backward pass ends as that of cuDNN does."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("cudnn RNN backward can only be called in training mode")


@pytest.fixture
def like_cudnn(monkeypatch):
    """LSTMs and GRUs that have a backward pass in train mode only."""
    for kind in (nn.LSTM, nn.GRU):

        def forward(self, *args, original=kind.forward, **kwargs):
            output, state = original(self, *args, **kwargs)
            if self.training:
                return output, state
            return Torn.apply(output), tuple(map(Torn.apply, state)) if isinstance(state, tuple) else Torn.apply(state)

        monkeypatch.setattr(kind, "forward", forward)


def by_hand(net, series, sign=1.0):
    A = net.features(series).detach().requires_grad_()
    y = net.head(net.lstm(A.transpose(1, 2))[1][0].transpose(0, 1).flatten(1))
    dA = torch.autograd.grad(sign * y.sum(), A)[0]
    return (dA.mean(2, keepdim=True) * A).sum(1).relu().detach()


def test_grad_cam_of_regressor_explains_output(net, series):
    """With 0 as the target it explains what lowers the output."""
    with prepare_model(net) as prepared:
        assert choose_layer(prepared, series) == "features"
    assert_close(GradCAM()(net, series), by_hand(net, series))
    assert_close(GradCAM()(net, series, 0), by_hand(net, series, -1.0))
    assert_close(GradCAM()(net, series, lambda y: y[:, 0]), by_hand(net, series))
    assert by_hand(net, series).amax(1).min() > 0 or by_hand(net, series, -1.0).amax(1).min() > 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:image and biases do not add up", "ignore::FutureWarning")
def test_every_method_maps_time_steps_of_recurrent_network(net, series, name):
    method = METHODS[name]
    if hasattr(method, "baselines"):
        method = replace(method, baselines=BASELINES)
    if hasattr(method, "cam"):
        method = replace(method, cam=replace(method.cam, baselines=BASELINES))
    if name in REFUSE:
        with pytest.raises(ValueError, match="expected"):
            method(net, series)
        return
    S = method(net, series)
    assert S.shape == (2, 12)
    assert S.isfinite().all()


def test_auto_layer_skips_lstm_unless_named(net, series):
    """Each has as many features as there are time steps: which axis is time cannot be seen."""
    S = GradCAM(layer="lstm", relu=False)(net, series)
    A = net.lstm(net.features(series).transpose(1, 2))[0].detach()
    assert S.shape == (2, 12)
    assert not S.any()  # the last state is read from another output
    lstm = Stacked()
    lstm.lstm = nn.LSTM(3, 12, batch_first=True)
    lstm.head = nn.Linear(12, 1)
    A = lstm.lstm(series.transpose(1, 2))[0].detach()
    expected = torch.einsum("btk,k->bt", A, lstm.head.weight[0]) / 12
    assert_close(GradCAM(layer="lstm", relu=False)(lstm, series), expected.detach())
    with pytest.raises(ValueError, match="pass layer= with the name of one"):
        GradCAM()(lstm, series)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_that_need_train_mode_for_gradients(like_cudnn, kind, series):
    torch.manual_seed(0)
    net = Stacked(kind).eval()
    with pytest.raises(RuntimeError, match="training mode"):
        net(series.requires_grad_()).sum().backward()
    series = series.detach()
    A = net.lstm(series.transpose(1, 2))[0].detach()
    expected = (torch.einsum("btk,k->bt", A, net.head.weight[0]) / 12).detach()
    before = state(net)
    assert_close(GradCAM(layer="lstm", relu=False)(net, series), expected)
    assert Gradient()(net, series).amax() > 0
    assert state(net) == before
    assert net.lstm.dropout == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_recurrent_layers_on_a_gpu(net, series):
    methods = {"gradcam": GradCAM(), "gradient": Gradient()}
    expected = explain(methods, net, series)
    for name, S in explain(methods, net.cuda(), series.cuda()).items():
        assert_close(S.cpu(), expected[name], rtol=1e-3, atol=1e-5)


def test_recurrent_model_in_train_mode_runs_without_dropout(series):
    torch.manual_seed(0)
    net = Stacked().eval()
    expected = Gradient()(net, series)
    net.train()
    before = state(net)
    assert_close(Gradient()(net, series), expected, rtol=0, atol=0)
    assert state(net) == before
    assert net.lstm.dropout == 0.5
    net.head.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Gradient()(net, series)
    assert (net.lstm.dropout, net.lstm.training) == (0.5, True)


def test_recurrent_dropout_stays_with_keep_mode(series):
    net = Stacked().train()
    with prepare_model(net, keep_mode=True):
        assert (net.lstm.dropout, net.lstm.training) == (0.5, True)
    net.eval()
    with prepare_model(net, keep_mode=True):
        assert net.lstm.dropout == 0  # as in eval mode, in which it was


def test_recurrent_subclass_is_in_eval_mode():
    class Own(nn.LSTM):
        def forward(self, x, hx=None):
            return super().forward(x if not self.training else 0 * x, hx)

    net = Stacked(Own).train()
    with prepare_model(net):
        assert not net.lstm.training


REVERSIBLE = {
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
def long_series():
    return torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def bilstm(long_series):
    torch.manual_seed(0)
    net = build_network("cnn_bilstm", 1, channels=3, width=5, hidden=4, kernel=3).double()
    net(long_series)
    return net.eval()


def reversed_in_time(net):
    """Return the bidirectional network that gives a series read backwards the output that `net` gives the series.

    Its directions are exchanged and its kernels reversed, so its maps are the reversed maps of `net`: an index that is
    off by one, a map resized at the wrong place or a forgotten direction makes a difference.
    """
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


@pytest.mark.parametrize("name", REVERSIBLE)
def test_maps_of_reversed_series_are_reversed(bilstm, long_series, name):
    other = reversed_in_time(bilstm)
    assert_close(other(long_series.flip(2)), bilstm(long_series))
    for target in (None, 0):
        S, T = REVERSIBLE[name](bilstm, long_series, target), REVERSIBLE[name](other, long_series.flip(2), target)
        assert_close(T.flip(1), S, rtol=1e-4, atol=1e-6)
        if name not in ("gradcamplusplus", "layercam", "ablationcam"):  # which may be 0 of one of the two
            assert S.any()
            assert not torch.allclose(S, S.flip(1))


class Counter(nn.Module):
    """A network with a recurrent part that reads one time step only."""

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
def test_map_of_network_that_reads_one_time_step(step, name):
    torch.manual_seed(1)
    net, x = Counter(step, 9).double().eval(), torch.ones(1, 1, 9, dtype=torch.float64)
    method = REVERSIBLE[name] if name != "layercam" else a.LayerCAM(relu=False)
    S = torch.maximum(method(net, x).abs(), method(net, x, 0).abs())[0]
    assert S[step] > 0
    assert S.count_nonzero() == 1


def test_convolutions_over_series_have_their_reach(bilstm, long_series):
    """Two convolutions of three steps each: what lies three steps away changes no feature."""
    changed = long_series.clone()
    changed[:, :, 8] += 5
    moved = (bilstm.features(changed) - bilstm.features(long_series)).abs().amax(1) > 0
    assert moved[:, [5, 11]].any().logical_not()
    assert moved[:, 8].all()
    changed = long_series.clone()
    changed[:, :, 0] += 5
    moved = (bilstm.features(changed) - bilstm.features(long_series)).abs().amax(1) > 0
    assert moved[:, 3:].any().logical_not()  # the end of a series does not go on at its beginning
