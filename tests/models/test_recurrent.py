import pytest
import torch
from torch.testing import assert_close

from interpretable_training.models import CNNLSTM, CNNBiLSTM, build_network


def last_state(A, layer, suffix=""):
    """The state of an LSTM after the last time step of A (T, K), one step at a time."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    W, U, b, d = (getattr(layer, name + suffix) for name in names)
    h = c = torch.zeros(layer.hidden_size, dtype=A.dtype)
    for a in A:
        i, f, g, o = (W @ a + b + U @ h + d).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


@pytest.fixture
def series():
    return torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["cnn_lstm", "cnn_bilstm"])
def test_cnn_lstm_equals_the_formulas(series, name):
    torch.manual_seed(0)
    net = build_network(name, 2, channels=4, width=6, hidden=5, kernel=3).double()
    net(series)  # statistics that are not those of a new batch norm
    net.eval()
    features = net.features(series)
    assert features.shape == (3, 6, 12)  # as many time steps as the series has
    for A, y in zip(features.transpose(1, 2), net(series)):
        h = last_state(A, net.lstm)
        if name == "cnn_bilstm":
            h = torch.cat([h, last_state(A.flip(0), net.lstm, "_reverse")])
        assert_close(y, net.head.weight @ h + net.head.bias)


def test_cnn_lstm_is_built_by_name():
    assert type(build_network("cnn_lstm", 1)) is CNNLSTM
    assert type(build_network("cnn_bilstm", 1)) is CNNBiLSTM
    assert CNNBiLSTM(1, dropout=0.25).dropout.p == 0.25


def test_cnn_lstm_refuses_even_kernels():
    with pytest.raises(ValueError, match="odd kernel, whose middle is a time step, got 4"):
        CNNLSTM(1, kernel=4)
