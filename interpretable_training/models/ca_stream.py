"""CA-Stream: attention pooling for a frozen network. Torres et al., CVPR-W 2024, https://arxiv.org/abs/2404.14996

    f      = g o GAP o f[L] o ... o f[0]          (1)  the backbone
    F[l]   = f[l](F[l-1])                         (2)  its stages, frozen
    q[l+1] = W[l] CA[l](q[l], F[l]) + b[l]        (3)  the stream, learned: see `cross_attention`
    y      = g(q[L+1])                            (4)  instead of g(GAP(F[L]))

g: the classifier, frozen, or a new linear one. q[0]: learned, one for all images or one per class. Of a transformer
F[l] are the patches in the output of a block, without class token and registers; GAP is its own pooling.
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
from interpretable_training.attribution.core.targets import pick_logits

from .cross_attention import CrossAttention, Stream
from .stages import as_maps, dissect
from .taps import Taps


class Attention(list[Tensor]):
    """Raw scores s of each stage as grids: (B, h, w), or (B, n, h, w) for n = queries x heads, if these are several."""

    @property
    def maps(self) -> list[Tensor]:
        """Attention of each stage: softmax of the scores over the cells."""
        return [s.flatten(-2).softmax(-1).view_as(s) for s in self]


class StreamOutput(NamedTuple):
    """Logits of the stream, logits of the backbone's own pooling if it has any, and the attention, all of one pass."""

    logits: Tensor
    gap: Tensor | None
    attention: Attention


class CAStream(nn.Module):
    """Network in which a stream of cross-attention replaces the pooling of a CNN or a transformer.

    Only `stream` is trained, and `probe`, the linear head that `num_classes` adds. `backbone` is the given module, not
    a copy. It stays in eval mode and without gradients, even after `train()` or `requires_grad_()`. Its graph is built
    only for gradients of the images or of its layers.
    State dicts contain the stream and a fingerprint of the backbone's weights.

    >>> from interpretable_training.models import TinyCNN, TinyViT
    >>> net = CAStream(TinyCNN(num_classes=5))
    >>> logits, attention = net.forward_with_attention(torch.randn(2, 3, 64, 64))
    >>> logits.shape, [tuple(s.shape) for s in attention]
    (torch.Size([2, 5]), [(2, 32, 32), (2, 16, 16), (2, 8, 8)])
    >>> vit = CAStream(TinyViT(5, image_size=32), num_classes=3, queries=2)  # a probe of frozen tokens
    >>> vit.stages, vit(torch.randn(2, 3, 32, 32)).shape
    (('blocks.0', 'norm'), torch.Size([2, 3]))

    Args:
        backbone: A network of torchvision, timm or transformers, or any module with stages and a head.
        stages: Names of the modules that return the maps or tokens of each stage; the last stage is the one that is
            pooled. By default they are found in a forward pass: one per resolution, or four evenly spaced blocks.
        start: First stage of the stream.
        class_specific: Learn one first query per class. The class is the label in training, otherwise the prediction of
            the backbone's own pooling.
        projected: Whether keys and values are linear in the maps.
        heads: Number of parts into which the channels are split, each with its own attention.
        bias: Whether the linear layers of the stream have biases.
        queries: Number of first queries.
        side_by_side: Whether the last step reads all queries together (concatenated) instead of averaging them.
        num_classes: Train a new linear head with this many outputs instead of the backbone's.
        head: Module of the backbone that computes logits from the pooled maps, or its name; by default it is found in a
            forward pass.
        train_head: Train the classifier too.
        train_backbone: Train the rest of the backbone too.
        image_size: Side of the images of this forward pass; by default that of the backbone's configuration, or 224.

    Attributes:
        pooling: Name of the backbone's own pooling, with which the stream is compared: "gap" (average), or "own" (class
            token, attention); None where the backbone's head is not used.
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
        queries: int = 1,
        side_by_side: bool = False,
        num_classes: int | None = None,
        head: str | nn.Module | None = None,
        train_head: bool = False,
        train_backbone: bool = False,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = unwrap(backbone)
        _check_options(class_specific, queries, num_classes, head)
        anatomy = dissect(self.backbone, stages, head, image_size, num_classes)
        if not 0 <= start < len(anatomy.stages):
            raise ValueError(
                f"expected start from 0 to {len(anatomy.stages) - 1}, the stages of {type(self.backbone).__name__} are "
                f"{list(anatomy.stages)}, got {start}."
            )
        dims = anatomy.dims[start:]
        if heads < 1 or any(d % heads for d in dims):
            raise ValueError(f"expected heads that divide the channels {list(dims)}, got {heads}.")
        self.stages, self.start, self.class_specific = anatomy.stages[start:], start, class_specific
        self.grids, self.probed = anatomy.grids[start:], anatomy.size
        self.head, self.num_classes = anatomy.head, anatomy.num_classes
        self.pooling = None if self.head is None else anatomy.pooling
        choices = anatomy.num_classes if class_specific else 1
        self.stream = Stream(dims, choices, heads, projected, bias, queries, side_by_side)
        self.stream.initialize(convnext=any(type(m).__name__ == "ConvNeXt" for m in self.backbone.modules()))
        self.probe = nn.Linear(dims[-1], self.num_classes) if self.head is None else None
        like = next(p for p in self.backbone.parameters() if p.is_floating_point())
        self.stream.to(like.device, like.dtype)
        if self.probe is not None:
            self.probe.to(like.device, like.dtype)
        self.train_head, self.train_backbone = train_head, train_backbone
        self.taps = Taps(self.backbone, anatomy.taps[start:], sum(anatomy.runs[start:]))
        frozen = set(self.sealed())
        for module in self.backbone.modules():
            if module not in frozen:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_()
        self.seal()

    def forward(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """Return logits (B, N); `target` (B,) selects the first query if queries are class-specific."""
        return self._run(images, target)[0]

    def forward_with_attention(self, images: Tensor, target: Tensor | None = None) -> tuple[Tensor, Attention]:
        """Return logits and the raw scores of each stage as grids; `maps` of these are the attention."""
        return self._run(images, target)[:2]

    def forward_with_gap(self, images: Tensor, target: Tensor | None = None) -> StreamOutput:
        """Return logits of the stream and of the backbone's own pooling, and the attention, from the same features."""
        logits, attention, gap = self._run(images, target, whole=True)
        return StreamOutput(logits, gap, attention)

    def _run(
        self, images: Tensor, target: Tensor | None, whole: bool = False
    ) -> tuple[Tensor, Attention, Tensor | None]:
        """Return `StreamOutput`; unless `whole`, the classifier runs once and logits of the own pooling may be None."""
        self.seal()
        whole |= self.class_specific and target is None  # the own pooling selects the first query
        gap, maps = self.features(images, whole)  # (2)
        which = None
        if self.class_specific:
            which = gap.argmax(1) if gap is not None and target is None else target
        return *self.pool(maps, which), gap

    def features(self, images: Tensor, whole: bool = False) -> tuple[Tensor | None, list[Tensor]]:
        """Return the maps (B, d, h, w) of each stage (2), behind the logits of the own pooling if `whole`."""
        whole = whole and self.head is not None
        output, outputs = self.taps.run(self.backbone, images, whole)
        maps = [as_maps(F, grid, images.shape[2:], self.probed) for F, grid in zip(outputs, self.grids)]
        return pick_logits(output) if whole else None, self._check(images, maps)

    def pool(self, maps: Sequence[Tensor], which: Tensor | None = None) -> tuple[Tensor, Attention]:
        """Return logits and attention of maps (B, d, h, w) of each stage; `which` selects first queries by class."""
        q, scores = self.stream(maps, which)  # (3)
        flat = [s.flatten(1, 2) for s in scores]
        attention = Attention(s.squeeze(1) if s.shape[1] == 1 else s for s in flat)
        if self.probe is not None:
            return self.probe(q), attention  # (4)
        assert self.head is not None
        return self.head(self.backbone, q), attention  # (4)

    def seal(self) -> None:
        """Set frozen modules to eval mode and without gradients."""
        for module in self.sealed():
            if module.training:
                module.training = False
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    parameter.requires_grad_(False)

    def sealed(self) -> Iterator[nn.Module]:
        """Yield the frozen modules of the backbone."""
        for name, module in self.backbone.named_modules():
            head = self.head is not None and name in self.head.modules
            if not (self.train_head if head else self.train_backbone):
                yield module

    def sealed_tensors(self) -> dict[str, Tensor]:
        """Return the frozen parameters and buffers by their names in the backbone."""
        state = self.backbone.state_dict(keep_vars=True)  # first: FSDP2 replaces tensors by those of the state dict
        tensors = (t for m in self.sealed() for t in (*m.parameters(recurse=False), *m.buffers(recurse=False)))
        frozen = {id(tensor) for tensor in tensors}
        return {name: tensor for name, tensor in state.items() if id(tensor) in frozen}

    def checksums(self) -> dict[str, str]:
        """Return a checksum of each frozen tensor."""
        return checksums(self.sealed_tensors())

    def class_weights(self) -> tuple[Tensor, Tensor] | None:
        """Return class weights V (n, N, d) multiplied by the last projection, and b (N,); None if g is not linear.

        Then y = b + sum over n queries and heads of V[n] sum over i of a[n, i] F[L, i].
        """
        ran = [] if self.head is None else [self.backbone.get_submodule(name) for name in self.head.modules]
        ran = [self.probe] if self.probe is not None else ran
        weighted = [module for module in ran if next(module.parameters(recurse=False), None) is not None]
        if len(weighted) != 1 or (self.head is not None and self.head.cells > 1):
            return None
        parameters, last = dict(weighted[0].named_parameters(recurse=False)), self.stream.blocks[-1]
        assert isinstance(last, CrossAttention)
        W = whole(full(parameters["weight"])).flatten(1)
        b = whole(full(parameters["bias"])) if "bias" in parameters else None
        V = W @ last.weights()
        if self.stream.queries > last.side_by_side:  # averaged
            V = V.repeat(self.stream.queries, 1, 1) / self.stream.queries
        return V, nn.functional.linear(last.offset(), W, b)

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
        facts = {"backbone": type(self.backbone).__name__, "weights": fingerprint(self.sealed_tensors())}
        return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)  # every file format stores tensors

    def set_extra_state(self, state: Tensor) -> None:
        pass  # compared in _load_from_state_dict, before anything is loaded

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            theirs, ours = (json.loads(bytes(s.tolist())) for s in (state, self.get_extra_state()))
            if theirs != ours:
                raise RuntimeError(
                    f"expected the backbone with which this stream was trained, a {theirs['backbone']} whose weights "
                    f"have the fingerprint {theirs['weights']}, got a {ours['backbone']} with {ours['weights']}; "
                    "build CAStream on that backbone with those weights before loading."
                )
        for name, tensor in self.sealed_tensors().items():  # not saved: keep the present tensors
            state_dict.setdefault(f"{prefix}backbone.{name}", tensor.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check(self, images: Tensor, maps: Sequence[Tensor | None]) -> list[Tensor]:
        for name, F in zip(self.stages, maps):
            if F is None:
                raise RuntimeError(f"expected stage {name!r} to run, but it did not; build CAStream again.")
            if F.shape[2] * F.shape[3] == 1:
                raise ValueError(
                    f"expected maps of more than one cell, got 1 x 1 from stage {name!r} for images "
                    f"{images.shape[2]} x {images.shape[3]}; pass larger images or a network with less stride."
                )
        return [F for F in maps if F is not None]


def _check_options(class_specific: bool, queries: int, num_classes: int | None, head: str | nn.Module | None) -> None:
    """Raise ValueError for options that do not go together."""
    if queries < 1:
        raise ValueError(f"expected at least one query, got queries={queries}.")
    if num_classes is None:
        return
    if num_classes < 1:
        raise ValueError(f"expected num_classes of at least 1 for a new linear head, got {num_classes}.")
    if head is not None or class_specific:
        raise ValueError(
            f"expected num_classes={num_classes} without head= and class_specific=, got head={head!r}, class_specific="
            f"{class_specific}: a new head replaces the backbone's, whose prediction selects the query of a class."
        )
