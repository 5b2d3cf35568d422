import math

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.models.cross_attention import CrossAttention, Stream


def block(*args, **kwargs):
    torch.manual_seed(0)
    return CrossAttention(*args, **kwargs).double()


def run(step, F, q):
    """Return the next query (B, d') and scores (B, heads, h, w) of one query per image."""
    q, s = step(F, q.unsqueeze(1))
    return q[:, 0], s[:, 0]


@pytest.fixture(name="F")
def features():
    return torch.randn(2, 6, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def q():
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_cross_attention_of_two_cells_by_hand():
    """d = 4, F = (4, 0, 0, 0) and (0, 2, 0, 0), q = (log 3, 0, 0, 0): s = (2 log 3, 0), a = (9, 1) / 10."""
    step = block(4, 1, bias=False)
    step.out.weight.data = torch.tensor([[1.0, 10, 0, 0]]).double()
    F = torch.tensor([[4.0, 0], [0, 2], [0, 0], [0, 0]]).double().view(1, 4, 1, 2)
    q, s = run(step, F, torch.tensor([[math.log(3), 0, 0, 0]]).double())
    assert_close(s, torch.tensor([2 * math.log(3), 0]).double().view(1, 1, 1, 2))
    assert_close(q, torch.tensor([[0.9 * 4 + 10 * 0.1 * 2]]).double())


def by_loops(step, F, q, heads):
    """Equations 3.1 to 3.8 of the thesis, cell by cell, with the keys and values that the code never makes."""
    queries, scores = [], []
    for image, query in zip(F, q):
        cells = [image[:, i, j] for i in range(image.shape[1]) for j in range(image.shape[2])]
        keys = cells if step.key is None else [step.key(cell) for cell in cells]
        values = cells if step.value is None else [step.value(cell) for cell in cells]
        c, pooled = len(query) // heads, []
        for h in range(heads):
            part = slice(h * c, (h + 1) * c)
            s = [sum(k * v for k, v in zip(key[part], query[part])) / math.sqrt(c) for key in keys]
            total = sum(x.exp() for x in s)
            pooled.append(sum(x.exp() / total * value[part] for x, value in zip(s, values)))
            scores.append(torch.stack(s))
        queries.append(step.out.weight @ torch.cat(pooled) + (0 if step.out.bias is None else step.out.bias))
    return torch.stack(queries), torch.stack(scores).view(len(F), heads, *F.shape[2:])


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_equals_loops_over_cells(F, q, heads, projected, bias):
    step = block(6, 5, heads, projected, bias)
    assert_close(run(step, F, q), by_loops(step, F, q, heads), rtol=0, atol=1e-12)


def test_identity_projections_change_nothing(F, q):
    """WK = WV = 1 without biases is the plain block."""
    projected, plain = block(6, 5, projected=True), block(6, 5)
    plain.load_state_dict(projected.state_dict(), strict=False)
    for linear in (projected.key, projected.value):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    assert_close(run(projected, F, q), run(plain, F, q))


def test_long_query_selects_one_cell():
    """With orthogonal cells, q = t F[j] and t to infinity: a becomes 1 at j, CA becomes F[j]."""
    step = block(6, 6, bias=False)
    torch.nn.init.eye_(step.out.weight)
    cells = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    F = cells.T.reshape(1, 6, 2, 3)  # cell i is row i
    for j in range(6):
        assert_close(run(step, F, 200 * cells[j][None])[0], cells[j][None])


def test_weights_and_offset_give_the_next_query(F, q):
    """q[l+1] = offset + sum over heads of W[h] (sum over i of a[h, i] F[i])."""
    for projected in (False, True):
        step = block(6, 5, heads=2, projected=projected)
        results, s = run(step, F, q)
        a = s.flatten(2).softmax(2)
        pooled = a @ F.flatten(2).transpose(1, 2)  # (B, heads, d)
        assert_close(results, step.offset() + torch.einsum("bhd,hcd->bc", pooled, step.weights()))


def test_one_query_is_broadcast_to_all_images(F, q):
    step = block(6, 5)
    assert_close(run(step, F, q[:1])[0], run(step, F, q[:1].expand(2, -1))[0])


def test_channels_last_changes_nothing(F, q):
    step = block(6, 5)
    assert_close(run(step, F.to(memory_format=torch.channels_last), q), run(step, F, q))


def test_stream_with_equal_class_queries_equals_one_query(F):
    torch.manual_seed(0)
    one, many = Stream([6]).double(), Stream([6], choices=4).double()
    one.initialize(False)
    many.load_state_dict({**one.state_dict(), "query": one.query.detach().expand(4, -1)})
    assert_close(many([F], torch.tensor([3, 0])), one([F]))


@pytest.mark.parametrize("convnext", [True, False])
def test_initialization_equals_the_authors(convnext):
    """Xavier: uniform within sqrt(6 / (in + out)), torch's biases; ConvNeXt: normal of 0.02 within 2, no biases."""
    torch.manual_seed(0)
    stream = Stream([200, 300, 400], choices=50)
    stream.initialize(convnext)
    assert_close(torch.std_mean(stream.query), (torch.tensor(1.0), torch.tensor(1.0)), rtol=0, atol=0.05)
    for step in stream.blocks:
        W, b = step.out.weight, step.out.bias
        if convnext:
            assert W.std().item() == pytest.approx(0.02, rel=0.05)
            assert not b.any()
        else:
            bound = math.sqrt(6 / sum(W.shape))
            assert 0.99 * bound < W.abs().max().item() <= bound
            assert W.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
            assert 0.9 / math.sqrt(W.shape[1]) < b.abs().max().item() <= 1 / math.sqrt(W.shape[1])
