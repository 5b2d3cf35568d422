"""Maps equal those of published implementations on fixed random networks, at layer resolution."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.networks import Function
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    AblationCAM,
    DeconvNet,
    EigenCAM,
    ExpectedGradCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    GuidedBackprop,
    HiResCAM,
    InputXGradient,
    IntegratedGradients,
    LayerCAM,
    Occlusion,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
    normalize,
)
from interpretable_training.attribution.core.batching import seeded_noise
from interpretable_training.attribution.core.capture import capture
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.attribution.expected_grad_cam import draw_paths

slow = pytest.mark.slow

TARGET = [3, 7]
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "vgg16_bn": "features.42",
    "mobilenet_v2": "features.18",
    "densenet121": "features.denseblock4",
    "convnext_tiny": "features.7",
}


class Amplified(nn.Module):
    """Logits a hundred times as large: against their gradients the epsilons of the peers weigh nothing."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return 100 * self.model(images)


@pytest.fixture(scope="module", params=LAYERS)
def case(request):
    torch.manual_seed(0)
    model = torchvision.models.get_model(request.param, num_classes=10, weights=None)
    for module in model.modules():  # statistics and scales as after some training: no channel is like another
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return Amplified(model).eval(), f"model.{LAYERS[request.param]}"


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def pytorch_grad_cam(name, model, layer, images, reshape_transform=None, target=TARGET):
    """The map before the peer upsamples and normalizes it."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = copy.deepcopy(model)
    cam = getattr(pytorch_grad_cam, name)(model, [model.get_submodule(layer)], reshape_transform)
    captured_maps, original = [], cam.get_cam_image

    def keep(*args, **kwargs):
        captured_maps.append(original(*args, **kwargs))
        return captured_maps[0]

    cam.get_cam_image = keep
    cam(images.clone(), [ClassifierOutputTarget(c) for c in target])
    return torch.from_numpy(captured_maps[0]).float()


def assert_same_map(ours, theirs):
    scale = theirs.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert_close(ours / scale, theirs / scale, rtol=2e-3, atol=2e-4)


@slow
@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM])
def test_gradient_cams_equal_pytorch_grad_cam(method, case, images):
    model, layer = case
    signed = {XGradCAM: "features.7", GradCAMPlusPlus: "features.denseblock4"}
    if layer.endswith(signed.get(method, "none")):
        pytest.skip("these features have both signs and sums near zero, where the peer's epsilon decides")
    theirs = pytorch_grad_cam(method.__name__, model, layer, images)
    assert_same_map(method(layer=layer, relu=False, upsample=False)(model, images, TARGET), theirs)


@slow
def test_eigen_cam_equals_pytorch_grad_cam_up_to_its_sign(case, images):
    model, layer = case
    theirs = pytorch_grad_cam("EigenCAM", model, layer, images)
    ours = EigenCAM(layer=layer, relu=False, upsample=False)(model, images, TARGET)
    assert_same_map(ours.abs(), theirs.abs())


@slow
def test_grad_cam_upsampled_equals_pytorch_grad_cam(case, images):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, layer = case
    theirs = copy.deepcopy(model)
    cam = pytorch_grad_cam.GradCAM(theirs, [theirs.get_submodule(layer)])
    expected = torch.from_numpy(cam(images.clone(), [ClassifierOutputTarget(c) for c in TARGET]))
    ours = GradCAM(layer=layer, normalize="before")(model, images, TARGET)
    assert_close(normalize(ours), expected, rtol=1e-3, atol=1e-3)


@slow
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_score_cam_and_ablation_cam_equal_pytorch_grad_cam(name, images):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10, weights=None).eval()
    options = {"layer": LAYERS[name], "relu": False, "upsample": False}
    score = ScoreCAM(**options, align_corners=True, skip_constant=False)(model, images, TARGET)
    assert_same_map(score, pytorch_grad_cam("ScoreCAM", model, LAYERS[name], images))
    ablation = AblationCAM(**options, denominator="signed")(model, images, TARGET)
    assert_same_map(ablation, pytorch_grad_cam("AblationCAM", model, LAYERS[name], images))


@slow
@pytest.mark.parametrize(
    ("method", "peer"),
    [
        (GradCAM(), "GradCAM"),
        (XGradCAM(), "XGradCAM"),
        (LayerCAM(), "LayerCAM"),
    ],
    ids=str,
)
def test_gradient_cams_equal_torchcam(method, peer, case, images):
    torchcam = pytest.importorskip("torchcam.methods")

    model, layer = case
    theirs = copy.deepcopy(model)
    with getattr(torchcam, peer)(theirs, layer) as extractor:
        (expected,) = extractor(TARGET, theirs(images.clone().requires_grad_()), normalized=False)
    ours = dataclasses.replace(method, layer=layer, upsample=False)(model, images, TARGET)
    assert_same_map(ours, expected.detach().relu())


@slow
def test_grad_cam_plusplus_of_torchcam_loses_its_denominator(images):
    """It divides `alpha[mask]`, a copy, in place: what remains of its alpha is g^2."""
    torchcam = pytest.importorskip("torchcam.methods")

    torch.manual_seed(0)
    model = Amplified(torchvision.models.resnet18(num_classes=10)).eval()
    with torchcam.GradCAMpp(model, "model.layer4") as extractor:
        (theirs,) = extractor(TARGET, model(images.clone().requires_grad_()), normalized=False)
    with prepare_model(model) as prepared:
        captured = capture(prepared, images, ["model.layer4"], torch.tensor(TARGET))
    A, g = captured.A["model.layer4"].detach(), captured.dA["model.layer4"]
    lost = torch.einsum("bk,bkij->bij", (g**2 * g.relu()).sum((2, 3)), A).relu()
    assert_same_map(lost, theirs.detach().relu())
    alpha = g**2 / (2 * g**2 + (A * g**3).sum((2, 3), keepdim=True)).where(g != 0, torch.inf)
    printed = torch.einsum("bk,bkij->bij", (alpha * g.relu()).sum((2, 3)), A).relu()
    ours = GradCAMPlusPlus(layer="model.layer4", denominator="sum_act_grad", upsample=False)(model, images, TARGET)
    assert_same_map(ours, printed)


@slow
def test_vit_maps_equal_pytorch_grad_cam_with_reshape(images):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=10, img_size=(96, 64))
    nn.init.normal_(model.head.weight, std=1.0)
    model, layer = Amplified(model).eval(), "model.blocks.11.norm1"

    def reshape(tokens):
        return tokens[:, 1:].reshape(len(tokens), 6, 4, -1).permute(0, 3, 1, 2)

    for method in (GradCAM, HiResCAM, LayerCAM):
        theirs = pytorch_grad_cam(method.__name__, model, layer, images, reshape)
        ours = method(relu=False, upsample=False)(model, images, TARGET)  # the layer is found
        assert_same_map(ours, theirs)


class OutOfPlace(torchvision.models.DenseNet):
    def forward(self, x):
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


@slow
def test_grad_cam_survives_in_place_activation_unlike_peer(images):
    """DenseNet rectifies its last features in place: the peer multiplies gradients before it with values behind it."""
    torch.manual_seed(0)
    in_place = torchvision.models.densenet121(num_classes=10).eval()
    nn.init.normal_(in_place.classifier.weight)
    twin = OutOfPlace(num_classes=10).eval()
    twin.load_state_dict(in_place.state_dict())
    ours = GradCAM(layer="features", relu=False, upsample=False)(in_place, images, TARGET)
    assert_same_map(ours, pytorch_grad_cam("GradCAM", twin, "features", images))
    wrong = pytorch_grad_cam("GradCAM", in_place, "features", images)
    assert (wrong - ours).abs().max() > 0.05 * ours.abs().max()


def captum(name, model, images, **options):
    import captum.attr

    return getattr(captum.attr, name)(copy.deepcopy(model)).attribute(
        images.clone().requires_grad_(), target=torch.tensor(TARGET), **options
    )


@slow
def test_input_gradients_equal_captum(case, images):
    model, images = copy.deepcopy(case[0]).double(), images.double()  # kinks of deep networks amplify rounding
    assert_same_volume(Gradient(reduce="none")(model, images, TARGET), captum("Saliency", model, images, abs=False))
    ours = InputXGradient(reduce="none")(model, images, TARGET)
    assert_same_volume(ours, captum("InputXGradient", model, images))
    ours = IntegratedGradients(steps=20, reduce="none")(model, images, TARGET)
    assert_same_volume(ours, captum("IntegratedGradients", model, images, n_steps=20))


@slow
def test_smooth_grad_is_mean_of_captum_gradients_at_same_noise(case, images):
    model, images = copy.deepcopy(case[0]).double(), images.double()
    noise = 0.2 * seeded_noise(5, (3, *images.shape[1:]), images)
    expected = sum(captum("Saliency", model, images + eta, abs=False) for eta in noise) / 3
    ours = SmoothGrad(n=3, sigma=0.2, absolute=True, seed=5, reduce="none")(model, images, TARGET)
    assert_same_volume(ours, expected)


@slow
@pytest.mark.parametrize("name", ["vgg16_bn", "densenet121"])
@pytest.mark.filterwarnings("ignore:Setting (forward|backward)")
def test_guided_rules_equal_captum_if_every_relu_is_a_module(name, images):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10, weights=None).eval()
    if name == "densenet121":  # its last activation is a function, which captum does not see
        model = nn.Sequential(model.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for method, peer in ((GuidedBackprop, "GuidedBackprop"), (DeconvNet, "Deconvolution")):
        assert_same_volume(method(reduce="none")(model, images, TARGET), captum(peer, model, images))


@slow
def test_guided_backprop_equals_pytorch_grad_cam_for_relu_modules(images):
    from pytorch_grad_cam import GuidedBackpropReLUModel

    torch.manual_seed(0)
    model = torchvision.models.vgg16_bn(num_classes=10).eval()
    theirs = GuidedBackpropReLUModel(copy.deepcopy(model), device="cpu")(images[:1].clone(), TARGET[0])
    ours = GuidedBackprop(reduce="none")(model, images[:1], TARGET[:1])
    assert_same_volume(ours, torch.from_numpy(theirs.transpose(2, 0, 1))[None])


@slow
def test_guided_backprop_sees_functional_relu_unlike_captum(images):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

        def forward(self, x):
            return self.head(F.relu(self.conv(x)).mean((2, 3)))

    model = Functional().eval()
    plain = Gradient(reduce="none")(model, images, TARGET)
    assert_same_volume(captum("GuidedBackprop", model, images), plain)  # what the peer returns is the plain gradient
    assert (GuidedBackprop(reduce="none")(model, images, TARGET) - plain).abs().max() > 0.1 * plain.abs().max()


def assert_same_volume(ours, theirs):
    scale = theirs.detach().abs().amax((1, 2, 3), keepdim=True)
    assert_close(ours / scale, theirs.detach() / scale, rtol=2e-3, atol=2e-4)


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
def small_images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@slow
@pytest.mark.filterwarnings("ignore")
def test_full_grad_of_channels_equals_pytorch_grad_cam(model, small_images):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    theirs = copy.deepcopy(model)
    cam = pytorch_grad_cam.FullGrad(theirs, [])
    expected = torch.from_numpy(cam(small_images.clone(), [ClassifierOutputTarget(c) for c in TARGET])).float()
    ours = normalize(FullGrad(rescale="channel")(model, small_images, TARGET))
    assert_close(ours, expected, rtol=0, atol=5e-3)


@slow
def test_occlusion_equals_captum_on_torchvision_networks(model, small_images):
    from captum.attr import Occlusion as Peer

    theirs = Peer(model).attribute(
        small_images, target=torch.tensor(TARGET), sliding_window_shapes=(3, 24, 20), strides=(3, 16, 14)
    )
    ours = Occlusion(patch=(24, 20), stride=(16, 14))(model, small_images, TARGET)
    assert_close(ours, theirs[:, 0], rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [(23,), (9, 14), (5, 6, 7)])
def test_occlusion_equals_captum_in_any_number_of_axes(shape):
    peer = pytest.importorskip("captum.attr").Occlusion
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64)
    w = torch.randn(3, x[0].numel(), generator=generator, dtype=torch.float64)
    net = Function(lambda x: (x.flatten(1) @ w.T).tanh() + x.flatten(1).square() @ w.T)
    value = torch.tensor([0.3, -0.7], dtype=torch.float64).view(2, *[1] * len(shape))
    patch, stride = (4, 3, 2)[: len(shape)], (3, 3, 1)[: len(shape)]
    ours = Occlusion(patch, stride, value=value, chunk_size=7)(net, x, torch.tensor([2, 0]))
    theirs = peer(net).attribute(
        x, (2, *patch), (2, *stride), value.expand_as(x), torch.tensor([2, 0]), perturbations_per_eval=1
    )
    assert_close(ours.float(), theirs[:, 0], rtol=1e-4, atol=1e-4)


@slow
def test_expected_grad_cam_weights_equal_captum_layer_shap(small_images, monkeypatch):
    """LayerGradientShap without noise, whose numbers a are drawn by numpy: it gets ours."""
    import numpy as np
    from captum.attr import LayerGradientShap

    torch.manual_seed(0)
    model = Amplified(torchvision.models.vgg11(num_classes=10, weights=None)).eval()
    base = torch.randn(1, 3, 64, 64)
    cam = ExpectedGradCAM("model.features.19", baselines=base, n=6, relu=False, upsample=False)
    monkeypatch.setattr(np.random, "uniform", lambda *_: draw_paths(cam)[1].float().numpy())
    shap = LayerGradientShap(model, model.model.features[19])
    volume = shap.attribute(small_images[:1], base, n_samples=6, stdevs=0.0, target=TARGET[0])
    A = model.model.features[:20](small_images[:1]).detach()
    expected = torch.einsum("bk,bkij->bij", volume.mean((2, 3)), A)
    ours = cam(model, small_images[:1], TARGET[:1])
    assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
