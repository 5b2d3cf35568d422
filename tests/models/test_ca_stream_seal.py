"""What is frozen stays frozen, and what is saved is what was learned."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution.core.checksum import checksums, fingerprint
from interpretable_training.models import CAStream, TinyCNN

UNSEAL = {
    "train": lambda net: net.train(),
    "train of the backbone": lambda net: net.backbone.train(),
    "one flag": lambda net: setattr(net.backbone.stem[1], "training", True),
    "requires_grad_": lambda net: net.requires_grad_(True),
    "requires_grad_ of the backbone": lambda net: net.backbone.requires_grad_(True),
    "one parameter": lambda net: net.backbone.head.weight.requires_grad_(True),
    "a parent": lambda net: nn.Sequential(net).train().requires_grad_(True),
}


@pytest.mark.parametrize("unseal", UNSEAL.values(), ids=UNSEAL)
def test_the_backbone_is_bitwise_the_same_after_training_steps(tiny, images, unseal):
    net = tiny()
    before, calls = copy.deepcopy(net.backbone.state_dict()), []
    net.backbone.stage1.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    query = net.stream.query.detach().clone()
    for _ in range(2):
        unseal(net)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert_close(net.backbone.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert not any(module.training for module in net.backbone.modules())
    assert calls == [False, False]  # no graph
    assert not torch.equal(net.stream.query, query)


def test_inference_leaves_statistics_alone_whatever_the_flags_say(tiny, images):
    net = tiny()
    before = net.checksums()
    net.backbone.train()
    with torch.no_grad():
        net(images)
    assert net.checksums() == before


def test_nothing_of_the_backbone_is_saved_for_the_backward_pass_but_stages_and_head(tiny, images):
    """The stream saves views of its stages; a graph of the backbone would save the maps of its stem, among others."""
    net, saved, outputs = tiny(start=1), set(), {}
    for name, module in net.backbone.named_modules():
        # Kept, so that no later tensor gets the memory of an earlier one.
        module.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))

    def pack(tensor):
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train()(images)
    made = {name: output.untyped_storage().data_ptr() for name, output in outputs.items()}
    assert made["stage2"] in saved
    assert made["stage3"] in saved
    assert not {made["stem.0"], made["stem"], made["stage1"], made["stage2.0.0"], made["stage2.0"]} & saved


@pytest.mark.parametrize(("option", "learned"), [("train_head", "head"), ("train_backbone", "stage3.0.0")])
def test_parts_of_the_backbone_may_be_learned(tiny, images, option, learned):
    net = tiny(**{option: True}).train()
    net(images).sum().backward()
    assert net.backbone.get_submodule(learned).weight.grad.abs().sum() > 0
    other = "stage3.0.0" if option == "train_head" else "head"
    assert net.backbone.get_submodule(other).weight.grad is None
    assert net.backbone.get_submodule(learned).training
    assert not net.backbone.get_submodule(other).training
    assert f"backbone.{learned}.weight" in net.state_dict()
    assert f"backbone.{other}.weight" not in net.state_dict()


def test_state_dicts_hold_the_stream_and_a_fingerprint(tiny, images):
    net, other = tiny(), tiny()
    other.stream.initialize(False)
    state = net.state_dict()
    assert {name.split(".")[0] for name in state} == {"stream", "_extra_state"}
    assert sum(tensor.numel() for name, tensor in state.items() if name.startswith("stream")) == sum(
        parameter.numel() for parameter in net.stream.parameters()
    )
    assert not torch.allclose(other(images), net(images))
    other.load_state_dict(state)
    assert_close(other(images), net(images), rtol=0, atol=0)


def test_state_dicts_inside_of_another_module(tiny, images):
    net, other = tiny(), tiny()
    other.stream.initialize(False)
    nn.ModuleDict({"a": other}).load_state_dict(nn.ModuleDict({"a": net}).state_dict())
    assert_close(other(images), net(images), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["weight", "statistics", "architecture"])
def test_another_backbone_is_refused_with_the_reason(tiny, how):
    net, other = tiny(), tiny()
    if how == "weight":
        other.backbone.head.bias.data[0] += 0.1
    elif how == "statistics":
        other.backbone.stem[1].running_mean[2] += 1
    else:
        other.backbone.__class__ = type("OtherCNN", (TinyCNN,), {})
    before = copy.deepcopy(other.state_dict())
    words = "a TinyCNN whose weights have the fingerprint .* got a " + ("OtherCNN" if how == "architecture" else "")
    with pytest.raises(RuntimeError, match=f"expected the backbone beside which .* {words}.*build CAStream on that"):
        other.load_state_dict(net.state_dict())
    assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_the_fingerprint_is_the_same_in_half_precision():
    torch.manual_seed(0)
    net = CAStream(TinyCNN(3, width=4))
    half = copy.deepcopy(net).bfloat16()
    net.load_state_dict(half.state_dict())
    assert_close(net.stream.query, half.stream.query.float())


def test_checksums_see_single_bits_and_the_fingerprint_does_not():
    one, other = {"w": torch.ones(3), "n": torch.tensor(4)}, {"w": torch.ones(3), "n": torch.tensor(4)}
    assert checksums(one) == checksums(other)
    other["w"][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert [name for name in one if checksums(one)[name] != checksums(other)[name]] == ["w"]
    assert fingerprint(one) == fingerprint(other)
    other["w"][1] = 1.01
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) != fingerprint({"v": one["w"], "n": one["n"]})
