import pytest
import torch
from torch import nn

from interpretable_training.models import TinyCNN, TinyViT


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 48), (224, 224)])
def test_tiny_cnn_accepts_images_of_any_size(size):
    assert TinyCNN(6, width=4)(torch.zeros(2, 3, *size)).shape == (2, 6)


def test_tiny_cnn_last_map_of_64_pixels_is_8_by_8():
    net = TinyCNN(6, channels=1, width=4)
    maps = net.stage3(net.stage2(net.stage1(net.stem(torch.zeros(1, 1, 64, 64)))))
    assert maps.shape[2:] == (8, 8)


def test_tiny_cnn_head_reads_the_mean_of_the_last_map():
    """So the logits are the mean over places of a 1 x 1 convolution with the head's weights: CAM holds exactly."""
    net, maps = TinyCNN(6, width=4).eval(), []
    net.stage3.register_forward_hook(lambda module, inputs, output: maps.append(output))
    logits = net(torch.randn(2, 3, 32, 48))
    by_place = torch.einsum("nk,bkij->bnij", net.head.weight, maps[0]) + net.head.bias[:, None, None]
    torch.testing.assert_close(by_place.mean((2, 3)), logits)


def test_tiny_cnn_relus_are_not_in_place():
    assert not any(module.inplace for module in TinyCNN(6).modules() if isinstance(module, nn.ReLU))


def test_tiny_vit_accepts_images_that_are_not_square():
    net = TinyViT(5, image_size=(16, 32), channels=1, dim=16)
    assert net(torch.zeros(2, 1, 16, 32)).shape == (2, 5)
    assert net.grid_size == (2, 4)


def test_tiny_vit_attention_sums_to_one():
    net, results = TinyViT(5, image_size=16, dim=16, heads=2), []
    for block in net.blocks:
        block.attn.softmax.register_forward_hook(lambda module, inputs, output: results.append(output))
    net(torch.randn(3, 3, 16, 16))
    assert [attention.shape for attention in results] == [(3, 2, 5, 5)] * 2
    torch.testing.assert_close(results[0].sum(3), torch.ones(3, 2, 5))


def test_tiny_vit_attention_equals_torch():
    attention = TinyViT(5, image_size=16, dim=16, heads=2).blocks[0].attn
    peer = nn.MultiheadAttention(16, 2, batch_first=True)
    peer.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.proj.weight,
            "out_proj.bias": attention.proj.bias,
        }
    )
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(attention(x), peer(x, x, x)[0])


def test_tiny_vit_depends_on_the_order_of_patches():
    net, images = TinyViT(5, image_size=16, dim=16).eval(), torch.randn(1, 3, 16, 16)
    assert not torch.allclose(net(images), net(images.roll(8, dims=3)))


@pytest.mark.parametrize("arguments", [{"image_size": 20}, {"dim": 30}])
def test_tiny_vit_refuses_sizes_that_do_not_divide(arguments):
    with pytest.raises(ValueError, match=r"expected .* in multiples of .*change one of the two"):
        TinyViT(5, **arguments)


def test_tiny_vit_refuses_images_of_another_size():
    with pytest.raises(ValueError, match=r"expected images of \(16, 16\) pixels, got \(24, 16\)"):
        TinyViT(5, image_size=16)(torch.zeros(1, 3, 24, 16))
