"""Networks with a convolutional and a recurrent part, for series of several channels.

    A = features(x)        (1)
    h = last state of the recurrent part over A    (2)
    y = W h + b            (3)

x: series (B, C, T). A: (B, K, T), of the same length, so that a class activation map has a value for each time step.
Buono and Akesson, Towards gradient faithfulness and beyond, Halmstad University, 2023, explain such networks on C-MAPSS
and call them CNN-LSTM and CNN-BiLSTM; they give no sizes; the sizes here are our choice.
"""

from torch import Tensor, nn


class CNNLSTM(nn.Module):
    """Network of two convolutions over time, an LSTM, and a linear layer for its last state.

    >>> CNNLSTM(num_classes=1, channels=14)(torch.randn(2, 14, 30)).shape
    torch.Size([2, 1])

    Args:
        num_classes: Number of outputs; 1 for regression.
        channels: Channels of the series.
        width: Channels after each convolution.
        hidden: Length of the state, in each direction.
        kernel: Time steps of a convolution; odd.
        bidirectional: Whether a second LSTM reads the series backwards.
        dropout: Share of the state that is set to zero in training, before the linear layer.
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
            raise ValueError(f"expected an odd kernel, whose middle is a time step, got {kernel}; pass {kernel + 1}.")
        widths = (channels, width, width)
        self.features = nn.Sequential(*(_conv_block(n_in, width, kernel) for n_in in widths[:-1]))
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), num_classes)

    def forward(self, series: Tensor) -> Tensor:
        A = self.features(series)  # (1)
        _, (h, _) = self.lstm(A.transpose(1, 2))  # (2), (directions, B, hidden)
        return self.head(self.dropout(h.transpose(0, 1).flatten(1)))  # (3)


class CNNBiLSTM(CNNLSTM):
    """`CNNLSTM` that reads the series in both directions, with the same arguments.

    >>> CNNBiLSTM(num_classes=1, channels=14)(torch.randn(2, 14, 30)).shape
    torch.Size([2, 1])
    """

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


def _conv_block(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """Return a convolution over time that keeps the length, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(channels_out),
        nn.ReLU(),
    )
