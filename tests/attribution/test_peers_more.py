"""Maps of biases, patches and expected gradients equal those of published implementations."""

import copy

import pytest
import torch
import torchvision
from test_peers import Amplified
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradCAM, FullGrad, Occlusion, normalize
from interpretable_training.attribution.expected_grad_cam import draw_paths

pytestmark = pytest.mark.slow
TARGET = [3, 7]


@pytest.fixture(params=["resnet18", "vgg11_bn"])
def model(request):
    torch.manual_seed(0)
    model = torchvision.models.get_model(request.param, num_classes=10, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return Amplified(model).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore")
def test_full_grad_of_channels_equals_pytorch_grad_cam(model, images):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    theirs = copy.deepcopy(model)
    cam = pytorch_grad_cam.FullGrad(theirs, [])
    expected = torch.from_numpy(cam(images.clone(), [ClassifierOutputTarget(c) for c in TARGET])).float()
    ours = normalize(FullGrad(rescale="channel")(model, images, TARGET))
    assert_close(ours, expected, rtol=0, atol=5e-3)


def test_occlusion_equals_captum(model, images):
    from captum.attr import Occlusion as Peer

    theirs = Peer(model).attribute(
        images, target=torch.tensor(TARGET), sliding_window_shapes=(3, 24, 20), strides=(3, 16, 14)
    )
    ours = Occlusion(patch=(24, 20), stride=(16, 14))(model, images, TARGET)
    assert_close(ours, theirs[:, 0], rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_expected_grad_cam_weighs_with_what_captum_attributes_to_the_layer(images, monkeypatch):
    """LayerGradientShap without noise, whose numbers a are drawn by numpy: it gets ours."""
    import numpy as np
    from captum.attr import LayerGradientShap

    torch.manual_seed(0)
    model = Amplified(torchvision.models.vgg11(num_classes=10, weights=None)).eval()
    base = torch.randn(1, 3, 64, 64)
    cam = ExpectedGradCAM("model.features.19", baselines=base, n=6, relu=False, upsample=False)
    monkeypatch.setattr(np.random, "uniform", lambda *_: draw_paths(cam)[1].float().numpy())
    shap = LayerGradientShap(model, model.model.features[19])
    volume = shap.attribute(images[:1], base, n_samples=6, stdevs=0.0, target=TARGET[0])
    A = model.model.features[:20](images[:1]).detach()
    expected = torch.einsum("bk,bkij->bij", volume.mean((2, 3)), A)
    ours = cam(model, images[:1], TARGET[:1])
    assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
