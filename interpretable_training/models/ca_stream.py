"""CA-Stream: attention pooling beside a frozen network. Torres et al., CVPR-W 2024, https://arxiv.org/abs/2404.14996

    f      = g o GAP o f[L] o ... o f[0]          (1)  the backbone
    F[l]   = f[l](F[l-1])                         (2)  its stages, frozen
    q[l+1] = W[l] CA[l](q[l], F[l]) + b[l]        (3)  the stream, learned: see `cross_attention`
    y      = g(q[L+1])                            (4)  instead of g(GAP(F[L]))

g: the classifier, frozen. q[0]: learned, one for all images or one per class.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.checksum import checksums, fingerprint
from interpretable_training.attribution.core.prepared_model import unwrap
from interpretable_training.attribution.core.sharded_parameters import whole

from .cross_attention import CrossAttention, Stream
from .stages import dissect
from .taps import Taps


class Attention(list[Tensor]):
    """The raw scores s of each stage as grids: (B, h, w), or (B, heads, h, w) with several heads."""

    @property
    def maps(self) -> list[Tensor]:
        """The attention of each stage, softmax of the scores over the cells."""
        return [s.flatten(-2).softmax(-1).view_as(s) for s in self]


class Seen(NamedTuple):
    """What one pass gives: logits of the stream and of average pooling, and the attention."""

    logits: Tensor
    gap: Tensor
    attention: Attention


class CAStream(nn.Module):
    """A network whose average pooling is replaced by a stream of cross-attention.

    Only `stream` is learned. The backbone, which is the given module and no copy, stays in eval mode and without
    gradients whatever is done to its flags; what it computes is part of the graph only where somebody asks for
    gradients of the images or of its layers. State dicts hold the stream, and a fingerprint of the backbone's weights.

    Args:
        backbone: a torchvision or timm network, or any module with stages and a head.
        stages: names of the modules that return the maps of each stage, the last one those that are pooled. By default
            they are found by what runs.
        start: the first stage of the stream.
        class_specific: learn one first query per class. The class is the label in training, else what average pooling
            predicts.
        projected: whether keys and values are linear in the maps.
        heads: parts into which the channels are split, each with its own attention.
        bias: whether the stream's linear layers have biases.
        head: the module of the backbone that makes logits of the pooled maps, or its name; by default it is found by
            what runs.
        train_head: learn the classifier too.
        train_backbone: learn the rest of the backbone too.
        image_size: side of the images with which the backbone is looked at; by default its configuration's, else 224.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[str] | None = None,
        start: int = 0,
        class_specific: bool = False,
        projected: bool = False,
        heads: int = 1,
        bias: bool = True,
        head: str | nn.Module | None = None,
        train_head: bool = False,
        train_backbone: bool = False,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = unwrap(backbone)
        found = dissect(self.backbone, stages, head, image_size)
        if not 0 <= start < len(found.stages):
            raise ValueError(
                f"expected start from 0 to {len(found.stages) - 1}, the stages of {type(self.backbone).__name__} are "
                f"{list(found.stages)}, got {start}."
            )
        if heads < 1 or any(d % heads for d in found.dims[start:]):
            raise ValueError(f"expected heads that divide the channels {list(found.dims[start:])}, got {heads}.")
        self.stages, self.start, self.class_specific = found.stages[start:], start, class_specific
        self.head, self.num_classes = found.head, found.num_classes
        queries = found.num_classes if class_specific else 1
        self.stream = Stream(found.dims[start:], queries, heads, projected, bias)
        self.stream.initialize(convnext=any(type(m).__name__ == "ConvNeXt" for m in self.backbone.modules()))
        like = next(p for p in self.backbone.parameters() if p.is_floating_point())
        self.stream.to(like.device, like.dtype)
        self.train_head, self.train_backbone = train_head, train_backbone
        self.taps = Taps(self.backbone, found.taps[start:], sum(found.runs[start:]))
        frozen = set(self.sealed())
        for module in self.backbone.modules():
            if module not in frozen:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_()
        self.seal()

    def forward(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits (B, N); `target` (B,) says which query to start with if they are class-specific."""
        return self._run(images, target)[0]

    def forward_with_attention(self, images: Tensor, target: Tensor | None = None) -> tuple[Tensor, Attention]:
        """Logits and the raw scores of each stage as grids, whose `maps` are the attention."""
        logits, _, attention = self._run(images, target)
        return logits, attention

    def look(self, images: Tensor, target: Tensor | None = None) -> Seen:
        """Logits with the stream and with average pooling, and the attention, of the same features."""
        return Seen(*self._run(images, target, whole=True))

    def _run(self, images: Tensor, target: Tensor | None, whole: bool = False) -> tuple[Tensor, Any, Attention]:
        """`Seen`; unless `whole`, the classifier runs once, without average pooling, whose logits may be None then."""
        self.seal()
        whole |= self.class_specific and target is None  # average pooling says which query to start with
        gap, maps = self.taps.run(self.backbone, images, whole)  # (2)
        self._check(images, maps)
        which = None
        if self.class_specific:
            which = gap.argmax(1) if target is None else target
        q, scores = self.stream(maps, which)  # (3)
        single = [s.squeeze(1) if s.shape[1] == 1 else s for s in scores]
        return self.head(self.backbone, q), gap, Attention(single)  # (4)

    def gap(self) -> nn.Module:
        """The plain network, which pools by the average."""
        return self.backbone

    def seal(self) -> None:
        """Keep what is frozen in eval mode and without gradients."""
        for module in self.sealed():
            if module.training:
                module.training = False
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    parameter.requires_grad_(False)

    def sealed(self) -> Iterator[nn.Module]:
        """The modules of the backbone that are frozen."""
        for name, module in self.backbone.named_modules():
            if not (self.train_head if name in self.head.modules else self.train_backbone):
                yield module

    def sealed_tensors(self) -> dict[str, Tensor]:
        """The frozen parameters and buffers by their names in the backbone."""
        state = self.backbone.state_dict(keep_vars=True)  # first: FSDP2 exchanges tensors for those of the state dict
        frozen = {id(t) for m in self.sealed() for t in (*m._parameters.values(), *m._buffers.values())}
        return {name: tensor for name, tensor in state.items() if id(tensor) in frozen}

    def checksums(self) -> dict[str, str]:
        """Of each frozen tensor; the same as long as nothing touches them."""
        return checksums(self.sealed_tensors())

    def class_weights(self) -> tuple[Tensor, Tensor] | None:
        """V (heads, N, d), the class weights seen through the last projection, and b (N,); None if g is not linear.

        Then y = b + sum over heads of V[head] sum over i of a[head, i] F[L, i].
        """
        ran = [self.backbone.get_submodule(name) for name in self.head.modules]
        weighted = [module for module in ran if next(module.parameters(recurse=False), None) is not None]
        if len(weighted) != 1 or self.head.cells > 1:
            return None
        held, last = dict(weighted[0].named_parameters(recurse=False)), self.stream.blocks[-1]
        assert isinstance(last, CrossAttention)
        W = whole(full(held["weight"])).flatten(1)
        b = whole(full(held["bias"])) if "bias" in held else None
        return W @ last.weights(), nn.functional.linear(last.offset(), W, b)

    def train(self, mode: bool = True) -> "CAStream":
        super().train(mode)
        self.seal()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "CAStream":
        super().requires_grad_(requires_grad)
        self.seal()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        for name in self.sealed_tensors():
            state.pop(f"{kwargs.get('prefix', '')}backbone.{name}", None)
        return state

    def get_extra_state(self) -> Tensor:
        known = {"backbone": type(self.backbone).__name__, "weights": fingerprint(self.sealed_tensors())}
        return torch.tensor(list(json.dumps(known).encode()), dtype=torch.uint8)  # tensors survive every file format

    def set_extra_state(self, state: Tensor) -> None:
        pass  # compared before anything is loaded

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            theirs, ours = (json.loads(bytes(s.tolist())) for s in (state, self.get_extra_state()))
            if theirs != ours:
                raise RuntimeError(
                    f"expected the backbone beside which this stream was learned, a {theirs['backbone']} whose weights "
                    f"have the fingerprint {theirs['weights']}, got a {ours['backbone']} with {ours['weights']}; "
                    "build CAStream on that backbone, with the weights that it had, before loading."
                )
        for name, tensor in self.sealed_tensors().items():  # which were not saved: they are what they are
            state_dict.setdefault(f"{prefix}backbone.{name}", tensor.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check(self, images: Tensor, maps: Sequence[Tensor | None]) -> None:
        for name, F in zip(self.stages, maps):
            if F is None:
                raise RuntimeError(f"expected stage {name!r} to run, but it did not; build CAStream anew.")
            if F.shape[2] * F.shape[3] == 1:
                raise ValueError(
                    f"expected maps of more than one cell, got 1 x 1 from stage {name!r} for images "
                    f"{images.shape[2]} x {images.shape[3]}; pass larger images or a network with less stride."
                )
