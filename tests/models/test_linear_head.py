import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.models import build_network
from interpretable_training.models.linear_head import find_linear_head, inputs_of


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("tiny_cnn", "head", {"width": 4}),
        ("tiny_vit", "head", {"image_size": 32, "dim": 16}),
        ("test_resnet", "fc", {}),
        ("test_vit", "head", {"img_size": 32}),
        ("test_convnext", "head.fc", {}),
    ],
)
def test_the_layer_that_returns_the_logits_is_found_and_read(name, head, options):
    network, images = build_network(name, 3, **options).eval(), torch.randn(2, 3, 32, 32)
    with prepare_model(network) as prepared, torch.no_grad():
        found, layer = find_linear_head(prepared, images, None)
        z, logits = inputs_of(prepared, layer, images)
        assert_close(layer(z), network(images))
    assert found == head
    assert_close(logits, layer(z))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
