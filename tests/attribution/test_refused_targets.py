"""Every method refuses wrong targets and outputs, with a message that names what was expected."""

import pytest
import torch
from support.attributions import METHODS, OF_ATTENTION, toy, toy_images
from torch import nn

from interpretable_training.attribution import CAM, GradCAM, Gradient, RandomMap

X = toy_images(2)
BLIND = ("fakecam", "randommap")  # run no model, so that they know no number of classes
OF_IMAGES = {name: m for name, m in METHODS.items() if name not in OF_ATTENTION}
NO_CALLABLE = ("cam", "captumattribution")
# These need the gradient of the score; the others read scores alone.
OF_SCORES = ("ablationcam", "eigencam", "occlusion", "polycam", "rise", "scorecam", *BLIND)


@pytest.fixture(scope="module")
def net():
    return toy()


class TrainsWithAuxiliaryLogits(nn.Module):
    """Returns a tuple in train mode and a tensor in eval mode, as GoogLeNet and Inception do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize("name", [name for name in OF_IMAGES if name not in BLIND])  # these read no logits
def test_output_of_a_tensor_is_refused(name, net):
    for output in (0, -1, True, 1.5, "zz", "data"):
        with pytest.raises(TypeError, match=r"expected .*output="):
            OF_IMAGES[name](TrainsWithAuxiliaryLogits(net), X, None, output=output)


@pytest.mark.parametrize("output", [5, "zz", lambda o: o[0][:1], lambda o: "x"])
def test_output_that_picks_no_logits_is_refused(output, net):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x), None

    with pytest.raises((TypeError, ValueError), match=r"^expected"):
        Gradient()(Two(), X, output=output)


def test_logits_of_another_number_of_rows_are_refused(function):
    with pytest.raises(ValueError, match="one row of logits per image"):
        Gradient()(function(lambda x: x.flatten(1)[:1]), X)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_targets_that_are_no_class_are_refused(name, net):
    for target in (-1, [0, -1], torch.tensor([-1, 0]), 4, 10**6, "", 1j, 2**63, b"1", {0: 1}, [[], []]):
        if name in BLIND and isinstance(target, int) and 0 < target < 2**63:
            continue  # does not know the number of classes
        with pytest.raises((TypeError, ValueError), match=r"^expected"):
            OF_IMAGES[name](net, X, target)


@pytest.mark.parametrize(
    "target",
    [lambda o: o[:1, 0], lambda o: o[:, :2].flatten(), lambda o: o[:, 0].long(), lambda o: o[:, 0].to(torch.complex64)],
    ids=["one", "twice as many", "integers", "complex"],
)
@pytest.mark.parametrize("name", [n for n in OF_IMAGES if n not in (*BLIND, "eigencam")])
def test_scores_of_a_callable_are_refused(name, target, net):
    with pytest.raises((TypeError, ValueError), match=r"^expected"):
        OF_IMAGES[name](net, X, target)


@pytest.mark.parametrize("name", [n for n in OF_IMAGES if n not in NO_CALLABLE])
def test_detached_scores_are_refused_where_a_gradient_is_needed(name, net):
    if name in OF_SCORES:
        assert OF_IMAGES[name](net, X, lambda o: o[:, 0].detach()).shape == X[:, 0].shape
    else:
        with pytest.raises(ValueError, match="without a gradient"):
            OF_IMAGES[name](net, X, lambda o: o[:, 0].detach())


def test_negative_targets_never_count_from_the_end(net):
    for method in (CAM(), GradCAM(), RandomMap()):
        with pytest.raises(ValueError, match="-1"):
            method(net, X, -1)
