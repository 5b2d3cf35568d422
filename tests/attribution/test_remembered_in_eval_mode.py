"""What a network keeps of a forward pass is as it was before the explanation."""

import timm
import torch

from interpretable_training.attribution import Gradient


def test_what_a_network_remembers_in_eval_mode_is_forgotten():
    """LeViT keeps biases that it looked up until it trains again: those of an explanation must not outlive it."""
    net = timm.create_model("levit_128s", pretrained=False, num_classes=3).train()
    caches = [m.attention_bias_cache for m in net.modules() if hasattr(m, "attention_bias_cache")]
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert caches
    Gradient()(net, images, 1)
    assert not any(caches)
    net.eval()(images)
    kept = [dict(cache) for cache in caches]
    Gradient()(net, images, 1)
    for cache, before in zip(caches, kept):
        assert cache.keys() == before.keys()
        assert all(cache[key] is before[key] for key in before)
