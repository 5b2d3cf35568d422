import pytest
import timm
import torch

from interpretable_training.models import TinyCNN, build_network


def test_build_network_passes_name_and_arguments():
    net = build_network("tiny_cnn", 7, channels=1, width=4)
    assert isinstance(net, TinyCNN)
    assert net(torch.zeros(1, 1, 16, 16)).shape == (1, 7)
    assert build_network("tiny_vit", 3, image_size=16, dim=8)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_build_network_sets_classes_of_timm_models():
    net = build_network("resnet10t", 4, in_chans=1).eval()
    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("TinyCNN", "tiny_cnn"), ("hf-hub:timm/resnet18", "resnet18")]
)
def test_unknown_network_name_lists_closest_names(name, near):
    with pytest.raises(ValueError, match=rf"got '{name}'; closest: .*{near}.*timm\.list_models\(\)"):
        build_network(name, 2)


def test_unknown_network_argument_names_the_network():
    with pytest.raises(TypeError, match=r"expected arguments that 'resnet10t' accepts.*no_such"):
        build_network("resnet10t", 2, no_such=1)


def test_tiny_networks_refuse_pretrained():
    with pytest.raises(ValueError, match="expected pretrained=False for 'tiny_cnn'"):
        build_network("tiny_cnn", 2, pretrained=True)


def test_failed_download_error_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RuntimeError, match=r"weights of 'resnet18', got ConnectionError: no route to host.*False"):
        build_network("resnet18", 2, pretrained=True)
