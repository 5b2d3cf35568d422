from functools import partial

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import AttentionRollout

close = partial(assert_close, rtol=0, atol=1e-9)
T = 7  # one class token and 2 x 3 patches of images of 8 x 12


@pytest.fixture
def picture():
    return torch.zeros(2, 1, 8, 12, dtype=torch.float64)


@pytest.fixture
def attending(function):
    """A model whose blocks have the softmax of given scores (heads, T, T) as attention."""

    def make(*scores):
        def forward(x):
            return sum(s.expand(len(x), *s.shape).softmax(-1).sum((1, 2, 3)) for s in scores)

        return function(forward)

    return make


@pytest.fixture
def random_scores():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(2, T, T, generator=generator, dtype=torch.float64) for _ in range(3)]


def rollout(scores, heads="mean", start=0, discard=0.0):
    """(1) and (2) entry by entry."""
    R = torch.eye(T, dtype=torch.float64)
    for s in scores[start:]:
        A = s.softmax(-1)
        A = {"mean": A.mean(0), "max": A.amax(0), "min": A.amin(0)}[heads]
        for entry in sorted(range(T * T), key=lambda e, A=A: A.flatten()[e].item())[: int(discard * T * T)]:
            A[entry // T, entry % T] = 0
        rows = [A[t] + torch.eye(T, dtype=torch.float64)[t] for t in range(T)]
        R = torch.stack([row / row.sum() for row in rows]) @ R
    return R


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("discard", [0.0, 0.4, 0.9])
def test_attention_rollout_is_the_printed_product(heads, start, discard, attending, random_scores, picture):
    S = AttentionRollout(heads=heads, start_layer=start, discard_ratio=discard, upsample=False)(
        attending(*random_scores), picture
    )
    R = rollout(random_scores, heads, start, discard)
    close(R.sum(1), torch.ones(T, dtype=torch.float64))
    close(S, R[0, 1:].view(1, 2, 3).expand(2, 2, 3))


def test_attention_rollout_of_identity_attention_is_zero(attending, picture):
    identity = 1e4 * torch.eye(T, dtype=torch.float64)[None]
    assert not AttentionRollout()(attending(identity, identity), picture).any()


def test_attention_rollout_of_one_uniform_block_is_half_of_it(attending, picture):
    """(1 / T + 0) / 2 from the class token to each patch."""
    S = AttentionRollout()(attending(torch.zeros(2, T, T, dtype=torch.float64)), picture)
    close(S, torch.full((2, 8, 12), 1 / (2 * T), dtype=torch.float64))


def test_attention_rollout_depends_on_order_of_blocks(attending, random_scores, picture):
    S, back = (AttentionRollout()(attending(*scores), picture) for scores in (random_scores, random_scores[::-1]))
    assert not torch.allclose(S, back)


def test_attention_rollout_refuses_start_behind_last_block(attending, random_scores, picture):
    with pytest.raises(ValueError, match=r"3 blocks.*3|start_layer.*3"):
        AttentionRollout(start_layer=3)(attending(*random_scores), picture)


def test_attention_rollout_refuses_blocks_of_different_tokens(attending, random_scores, picture):
    with pytest.raises(ValueError, match="all see the same tokens"):
        AttentionRollout()(attending(random_scores[0][:, :4, :4], random_scores[0]), picture)
