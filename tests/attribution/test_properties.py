"""Properties of every method of the package."""

import ast
import gc
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from support.attributions import METHODS, ONE_PASS, SIZE, disorder, generators, state, toy, toy_images
from support.families import few
from torch.testing import assert_close

import interpretable_training.attribution as attribution
from interpretable_training.attribution import (
    Attribution,
    CaptumAttribution,
    Gradient,
    GradientCAM,
    IntegratedGradients,
)

every_method = pytest.mark.parametrize("name", METHODS)
CLASS_FREE = {"attentionrollout", "rawattention", "eigencam", "fakecam", "randommap"}


def test_list_of_methods_is_complete():
    exported = {getattr(attribution, name) for name in attribution.__all__}
    classes = {c for c in exported if isinstance(c, type) and issubclass(c, Attribution)}
    assert {type(method) for method in METHODS.values()} == classes - {Attribution, GradientCAM}


@every_method
def test_docstring_of_method_has_an_example(name):
    assert ">>> " in type(METHODS[name]).__doc__


def test_core_imports_no_method():
    """Methods import the core, never the other way round."""
    for path in (Path(attribution.__file__).parent / "core").glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in imports if node.level > 1], path


@every_method
def test_maps_are_float32_finite_detached_at_image_size(name):
    maps = METHODS[name](toy(name), toy_images())
    assert maps.shape == (3, *SIZE)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert maps.grad_fn is None
    assert not maps.is_inference()
    assert (maps.flatten(1).amax(1) > maps.flatten(1).amin(1)).any(), "every map is constant"


@every_method
def test_map_of_image_alone_equals_map_in_batch(name):
    net, images, target = toy(name), toy_images(), torch.tensor([2, 0, 1])
    together = METHODS[name](net, images, target)
    for i in range(3):
        alone = METHODS[name](net, images[i : i + 1], target[i : i + 1])
        assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5 * float(together.abs().max()))


@every_method
def test_maps_repeat_bit_equal_for_any_generator_state(name):
    net, images = toy(name), toy_images()
    first = METHODS[name](net, images)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(12345)
    assert torch.equal(first, METHODS[name](net, images))


@every_method
def test_default_target_is_predicted_class(name):
    net, images = toy(name), toy_images()
    predicted = net(images).argmax(1)
    maps = METHODS[name](net, images)
    assert_close(maps, METHODS[name](net, images, predicted))
    assert_close(maps, METHODS[name](net, images, "pred"))
    other = METHODS[name](net, images, (predicted + 1) % 4)
    assert torch.equal(maps, other) == (name in CLASS_FREE)


@every_method
def test_several_targets_equal_each_alone(name):
    net, images = toy(name), toy_images(2)
    maps = METHODS[name](net, images, torch.tensor([[0, 1], [2, 3]]))
    assert maps.shape == (2, 2, *SIZE)
    for t, target in enumerate((torch.tensor([0, 2]), torch.tensor([1, 3]))):
        assert_close(maps[:, t], METHODS[name](net, images, target))


@every_method
@pytest.mark.parametrize("keep_mode", [False, True])
def test_call_leaves_no_state(name, keep_mode):
    net, images = toy(name), toy_images()
    disorder(net)
    before, rng, pixels, held = state(net), generators(), images.clone(), {id(p.grad) for p in net.parameters()}
    try:
        METHODS[name](net, images, keep_mode=keep_mode)
    except ValueError:
        assert (name, keep_mode) == ("cam", True)  # dropout between pooling and head: CAM is not defined
    assert state(net) == before
    assert generators() == rng
    assert torch.equal(images, pixels)
    assert {id(p.grad) for p in net.parameters()} == held


@every_method
@pytest.mark.parametrize("where", few(["first", "middle", "last"], "middle"))
def test_failed_call_leaves_no_state(name, where):
    net, images = toy(name), toy_images()
    METHODS[name](net, images)
    runs = net.boom.runs
    net = toy(name)
    disorder(net)
    before, rng = state(net), generators()
    net.boom.at = {"first": 1, "middle": (runs + 1) // 2, "last": runs}[where]
    with pytest.raises(RuntimeError, match="boom"):
        METHODS[name](net, images)
    assert state(net) == before
    assert generators() == rng
    assert torch.is_grad_enabled()
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    net.boom.at = 0
    assert torch.equal(METHODS[name](net, images), METHODS[name](toy(name), images))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ["GuidedBackprop", "Deconvolution", "LayerGradCam", "DeepLift", "LRP"])
def test_failed_captum_algorithm_leaves_no_state(algorithm):
    net = toy()
    net.stem[2], net.block[2] = torch.nn.ReLU(), torch.nn.ReLU()
    before = state(net)
    for at in (1, 2):
        net.boom.passes.clear()
        net.boom.at = at
        layer = "block" if "Cam" in algorithm else None
        with pytest.raises(Exception, match=r"boom|no rule"):
            CaptumAttribution(algorithm, layer=layer)(net, toy_images(), None)
        assert state(net) == before


@every_method
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_maps_are_equal_inside_no_grad_and_inference_mode(name, context):
    net, images, target = toy(name), toy_images(), torch.tensor([0, 1, 2])
    maps = METHODS[name](net, images, target)
    with context():
        inside = METHODS[name](net, images * 1, target * 1)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert torch.equal(maps, inside)


@every_method
def test_maps_under_autocast_are_close_and_float32(name):
    net, images = toy(name), toy_images()
    target = net(images).argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        maps = METHODS[name](net, images, target)
        assert torch.is_autocast_enabled("cpu")
    assert_half_is_close(maps, METHODS[name](net, images, target))


@every_method
def test_maps_under_autocast_are_computed_in_float32(name):
    """Rounded to bfloat16, a map made in float32 changes nearly everywhere."""
    net, images = toy(name), toy_images()
    with torch.autocast("cpu", torch.bfloat16):
        maps = METHODS[name](net, images)
    if name in ("gradient", "guidedbackprop", "deconvnet", "fakecam", "inputxgradient"):
        return  # copies of what the network's own half precision gave
    raw = maps[maps != 0]
    assert (raw != raw.bfloat16().float()).float().mean() > 0.5


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"randommap"}))  # rounded pixels are another seed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_half_precision_weights_are_close(name, dtype):
    net, images = toy(name), toy_images()
    target = net(images).argmax(1)
    maps = METHODS[name](net, images, target)
    half = METHODS[name](toy(name).to(dtype), images, target)
    assert_half_is_close(half, maps)


def assert_half_is_close(half, maps):
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    together = torch.stack([half.flatten(), maps.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.9


@every_method
def test_maps_of_frozen_parameters_are_equal(name):
    net, images = toy(name), toy_images()
    maps = METHODS[name](net, images)
    net.requires_grad_(False)
    assert torch.equal(METHODS[name](net, images), maps)
    assert not any(p.requires_grad for p in net.parameters())


@every_method
def test_maps_in_train_mode_equal_eval_mode_and_keep_it(name):
    net, images = toy(name), toy_images()
    maps = METHODS[name](net, images)
    assert torch.equal(METHODS[name](net.train(), images), maps)
    assert all(module.training for module in net.modules())


@pytest.mark.slow
def test_calls_do_not_grow_memory():
    toys = {name: (METHODS[name], toy(name)) for name in METHODS}
    images = toy_images(1)
    for _ in range(3):  # in turn: what one method imports makes Python fill its caches of classes anew for all
        for method, net in toys.values():
            method(net, images)
    objects, tensors = count_objects()
    for name, (method, net) in toys.items():
        for _ in range(200 if name == "gradcam" else 20):
            method(net, images)
    after, tensors_after = count_objects()
    assert tensors_after <= tensors
    assert after - objects < 20


def count_objects():
    gc.collect()
    objects = gc.get_objects()
    return len(objects), sum(issubclass(type(o), torch.Tensor) for o in objects)


@every_method
def test_network_images_and_maps_are_freed(name):
    net, images = toy(name), toy_images(1)
    maps = METHODS[name](net, images)
    gone = [weakref.ref(net), weakref.ref(maps), weakref.ref(images)]
    del net, maps, images
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


@every_method
def test_create_graph_gives_full_derivative_or_refuses(name):
    """A loss on the map moves a parameter as finite differences say; a map without graph cannot be trained on."""
    net, images, target = toy(name).double(), toy_images(2).double(), torch.tensor([0, 1])

    def loss():
        return METHODS[name](net, images, target, create_graph=True).square().sum()

    try:
        trainable = loss().requires_grad
    except (TypeError, ValueError):
        trainable = False  # refused
    if not trainable:
        return
    parameters = [p for n, p in net.named_parameters() if n.startswith(("head", "stem"))]
    exact = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * w).sum()) for g, w in zip(exact, way) if g is not None)
    ends = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            _ = [p.add_(w, alpha=step) for p, w in zip(parameters, way)]
        ends.append(float(loss().detach()))
        with torch.no_grad():
            _ = [p.sub_(w, alpha=step) for p, w in zip(parameters, way)]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-9)


def test_loss_on_map_reaches_parameters_below_layer():
    for method in [*ONE_PASS, Gradient(), IntegratedGradients(steps=2)]:
        net = toy()
        method(net, toy_images(), 1, create_graph=True).square().sum().backward()
        assert net.stem[0].weight.grad is not None
        assert net.stem[0].weight.grad.any()
