"""Our convolution and batch norm are torch's, through to the second derivative."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from interpretable_training.regularization.quick import Quick

CONVOLUTIONS = [
    (F.conv1d, (2, 3, 7), (2, 3, 3), {}),
    (F.conv2d, (1, 4, 4, 5), (4, 2, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    (F.conv2d, (2, 3, 4, 3), (3, 1, 3, 2), {"padding": (1, 0), "dilation": (1, 2), "groups": 3}),
    (F.conv3d, (2, 2, 3, 3, 3), (2, 2, 2, 2, 2), {}),
]
SHAPES = [(5, 3), (3, 3, 4), (2, 3, 3, 4), (2, 3, 2, 2, 2)]


def numbers(*shape, shift=0.0):
    return (torch.randn(shape, dtype=torch.float64) * 2 + shift).requires_grad_()


def quick(function):
    def call(*args, **kwargs):
        with Quick():
            return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(("function", "size", "kernel", "options"), CONVOLUTIONS)
def test_convolution_derivatives_equal_finite_differences(function, size, kernel, options):
    inputs = numbers(*size), numbers(*kernel), numbers(kernel[0])
    run = quick(lambda x, w, b: function(x, w, b, **options))
    assert type(run(*inputs).grad_fn).__name__ == "ConvolutionBackward"
    assert_close(run(*inputs), function(*inputs, **options), rtol=0, atol=0)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)
    assert gradgradcheck(quick(lambda x, w: function(x, w, **options)), inputs[:2])


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_derivatives_equal_finite_differences(shape):
    inputs = numbers(*shape, shift=5), numbers(3), numbers(3)
    run = quick(lambda x, *wb: F.batch_norm(x, None, None, *wb, training=True))
    assert type(run(*inputs).grad_fn).__name__ == "BatchNormBackward"
    assert_close(run(*inputs), F.batch_norm(inputs[0], None, None, *inputs[1:], training=True), rtol=0, atol=0)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)
    assert gradgradcheck(run, inputs[:1])


@pytest.mark.parametrize("training", [True, False])
def test_quick_mode_gives_the_same_derivatives_and_buffers(training):
    results = []
    for context in (Quick(), nullcontext()):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding="same"))
        net = nn.Sequential(block, nn.BatchNorm2d(4, affine=False, momentum=None)).double().train(training)
        images, v = numbers(4, 3, 8, 8), torch.randn(4, 3, 8, 8, dtype=torch.float64)
        with context:
            logits = net(images)
        d = torch.autograd.grad(logits.square().sum(), images, create_graph=True)[0]
        results.append(
            [*torch.autograd.grad((d * v).sum(), [*net.parameters()], materialize_grads=True), *net.buffers()]
        )
    assert_close(*results)


def test_quick_batch_norm_refuses_one_value_per_channel():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        quick(nn.BatchNorm1d(3))(torch.randn(1, 3, requires_grad=True))


def test_quick_convolution_equals_torch_under_autocast():
    conv, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = quick(conv)(images), conv(images)
    assert ours.dtype == torch.bfloat16
    for a, b in ((ours, theirs), *zip(*(torch.autograd.grad(y.sum(), [images, conv.weight]) for y in (ours, theirs)))):
        assert_close(a, b, rtol=0, atol=0)


def test_third_derivatives_equal_finite_differences():
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for net in (nn.Conv2d(2, 2, 2).double(), nn.BatchNorm2d(2).double()):
        nn.init.normal_(net.weight)

        def second(x, weight, net=net):
            with Quick():
                y = torch.func.functional_call(net, {"weight": weight}, (x,))
            d = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0]
            return torch.autograd.grad(d.square().sum(), [x, weight], create_graph=True)

        assert gradcheck(second, (x, net.weight))
