"""CA-Stream as a module with plain outputs, for `torch.export` and ONNX."""

from torch import Tensor, nn

from .ca_stream import CAStream


class WithAttention(nn.Module):
    """Return logits (B, N) and the attention of the last stage (B, h, w), or (B, n, h, w), as a tuple of tensors.

    >>> logits, attention = WithAttention(CAStream(network))(images)
    >>> logits.shape, attention.shape
    (torch.Size([4, 2]), torch.Size([4, 16, 16]))

    Args:
        network: CA-Stream, or a probe that attends.
    """

    def __init__(self, network: CAStream) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, attention = self.network.forward_with_attention(images)
        return logits, attention.maps[-1]
