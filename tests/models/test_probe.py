import pytest
import timm
import torch
from support.trainers import quiet_trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader

from interpretable_training.models import CAStream, Probe, TinyCNN, TinyViT
from interpretable_training.models.probe import probe_cost
from interpretable_training.modules import CAStreamClassifier

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def probe(kind, **kwargs):
    torch.manual_seed(0)
    return Probe(TinyViT(5, image_size=32, dim=16), 3, kind, **kwargs)


def tokens_of(net):
    return net.backbone.norm(net.backbone.blocks(embedded(net.backbone)))


def embedded(vit):
    patches = vit.patch_embed(IMAGES).flatten(2).mT
    return torch.cat([vit.cls_token.expand(2, -1, -1), patches], 1) + vit.pos_embed


@pytest.mark.parametrize(("kind", "pooled"), [("average", lambda x: x[:, 1:].mean(1)), ("token", lambda x: x[:, 0])])
def test_linear_probes_read_average_or_class_token(kind, pooled):
    net = probe(kind)
    logits, attention = net.forward_with_attention(IMAGES)
    assert_close(logits, net.probe(pooled(tokens_of(net))))
    assert attention == []


def test_efficient_probe_equals_loops():
    """Each of two queries pools one half of the values, computed here for every cell."""
    net = probe("efficient", queries=2)
    logits, attention = net.forward_with_attention(IMAGES)
    for i, cells in enumerate(tokens_of(net)[:, 1:]):
        values, parts = [net.stream.value(cell) for cell in cells], []
        for m, u in enumerate(net.stream.query):
            e = torch.stack([(cell @ u / 4).exp() for cell in cells])
            a = e / e.sum()
            assert_close(attention.maps[0][i, m].flatten(), a)
            parts.append(sum(w * v[8 * m : 8 * (m + 1)] for w, v in zip(a, values)))
        assert_close(logits[i], net.probe(torch.cat(parts)))


def test_latent_probe_is_timm_pooling_with_its_attention():
    net = probe("latent", heads=2)
    logits, attention = net.forward_with_attention(IMAGES)
    cells, pool = tokens_of(net)[:, 1:], net.stream.pool
    assert_close(logits, net.probe(pool(cells)))
    k = pool.kv(cells)[..., :16].unflatten(2, (2, 8))
    q = pool.q(pool.latent[0, 0]).view(2, 8)
    a = (torch.einsum("bphc,hc->bhp", k, q) / 8**0.5).softmax(-1)
    assert_close(attention.maps[0].flatten(2), a)


@pytest.mark.parametrize(
    ("build", "trained", "operations"),
    [
        (lambda b: Probe(b, 10), 384 * 10 + 10, 2 * 384 * 10),
        (lambda b: Probe(b, 10, "token"), 384 * 10 + 10, 2 * 384 * 10),
        # scores, pooling and values of 8 queries
        (
            lambda b: Probe(b, 10, "efficient", queries=8),
            8 * 384 + 384**2 + 3850,
            2 * 2 * 8 * 196 * 384 + 2 * 384**2 + 7680,
        ),
        # 4 steps: scores and pooling, W
        (
            lambda b: CAStream(b, num_classes=10),
            4 * (384**2 + 384) + 384 + 3850,
            4 * (4 * 196 * 384 + 2 * 384**2) + 7680,
        ),
        # query, latent, projections of q, k, v and out, MLP of 4 d
        (lambda b: Probe(b, 10, "latent", heads=6), 384 + 4 * (384**2 + 384) + 8 * 384**2 + 5 * 384 + 3850, None),
    ],
)
def test_cost_of_probes_equals_the_formula(build, trained, operations):
    with torch.device("meta"):
        net, image = build(timm.create_model("vit_small_patch16_224", num_classes=0)), torch.empty(1, 3, 224, 224)
        cost = probe_cost(net, image)
    assert cost[0] == trained
    assert operations is None or cost[1] == operations


@pytest.mark.parametrize("kind", ["average", "token", "efficient", "latent"])
def test_probes_train_and_keep_their_backbone(kind, tmp_path):
    net = probe(kind)
    module, before = CAStreamClassifier(net, 3), net.checksums()
    weight = net.probe.weight.detach().clone()
    quiet_trainer(tmp_path).fit(module, DataLoader(list(zip(IMAGES, [0, 2])), batch_size=2))
    assert net.checksums() == before
    assert not torch.equal(net.probe.weight, weight)
    other = probe(kind)
    other.load_state_dict(net.state_dict())
    assert_close(other(IMAGES), net.eval()(IMAGES))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Probe(TinyCNN(3, width=4), 3, "token", image_size=32), "expected a backbone with a class token"),
        (lambda: probe("efficient", queries=3), "expected queries and heads that divide the 16 channels, got 3"),
        (lambda: probe("latents"), "expected kind 'average', .* got 'latents'"),
    ],
)
def test_probe_refuses_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
