"""A convolutional and a recurrent part in a row, for series of several channels.

    A = features(x)        (1)
    h = last state of the recurrent part over A    (2)
    y = W h + b            (3)

x: series (B, C, T). A: (B, K, T), of the same length, so that a class activation map has a value for each time step.
Buono and Akesson, Towards gradient faithfulness and beyond, Halmstad University, 2023, explain such networks on C-MAPSS
and call them CNN-LSTM and CNN-BiLSTM; they give no sizes, so these are ours.
"""

from torch import Tensor, nn


class CNNLSTM(nn.Module):
    """Two convolutions over time, an LSTM, and a linear layer that reads its last state.

    Args:
        num_classes: Number of outputs; 1 for regression.
        channels: Channels of the series.
        width: Channels after each convolution.
        hidden: Length of the state, in each direction.
        kernel: Time steps that a convolution sees; odd.
        bidirectional: Whether a second LSTM reads the series from its end.
        dropout: Share of the state that training leaves out before the linear layer.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 14,
        width: int = 32,
        hidden: int = 32,
        kernel: int = 5,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, whose middle is a time step, got {kernel}.")
        widths = (channels, width, width)
        self.features = nn.Sequential(*(conv_block(n_in, width, kernel) for n_in in widths[:-1]))
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), num_classes)

    def forward(self, series: Tensor) -> Tensor:
        A = self.features(series)  # (1)
        _, (h, _) = self.lstm(A.transpose(1, 2))  # (2), (directions, B, hidden)
        return self.head(self.dropout(h.transpose(0, 1).flatten(1)))  # (3)


class CNNBiLSTM(CNNLSTM):
    """`CNNLSTM` that reads the series in both directions; the arguments are the same."""

    def __init__(
        self,
        num_classes: int,
        channels: int = 14,
        width: int = 32,
        hidden: int = 32,
        kernel: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, channels, width, hidden, kernel, True, dropout)


def conv_block(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """Convolution over time that keeps the length, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(channels_out),
        nn.ReLU(),
    )
