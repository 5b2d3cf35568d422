"""Write docs/ca_stream_networks.md: what CA-Stream costs, and the networks of timm on which it was tried.

python docs/make_ca_stream_table.py    # some minutes; weights are random
"""

from pathlib import Path

import timm
import torch
import torchvision
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from interpretable_training.attribution import GradCAM, RawAttention, degenerate
from interpretable_training.models import CAStream

FILE = Path(__file__).parent / "ca_stream_networks.md"
THESIS = {  # GFLOPs of GAP and CA in Table 3.3
    "resnet18": (3.648, 3.652),
    "resnet50": (8.268, 8.288),
    "convnext_small": (17.395, 17.400),
    "convnext_base": (30.747, 30.753),
}
MODELS = """
resnet18 resnext50_32x4d seresnet18 ecaresnet26t resnest14d skresnet18 resnetaa50 res2net50_14w_8s resnetv2_50
legacy_seresnet18 vgg11_bn densenet121 dpn48b inception_v3 xception41 nfnet_f0 convnext_atto convnextv2_atto regnety_002
efficientnet_b0 tf_efficientnetv2_b0 mixnet_s mnasnet_100 fbnetc_100 tinynet_e hardcorenas_a mobilenetv2_050
mobilenetv3_small_050 mobilenetv4_conv_small lcnet_050 ghostnet_100 rexnet_100 dla34 hrnet_w18_small cspresnet50
darknet53 cspdarknet53 repvgg_a0 gernet_s mobileone_s0 ese_vovnet19b_dw hgnetv2_b0 selecsls42b edgenext_xx_small
fastvit_t8 repvit_m0_9 starnet_s1 inception_next_atto poolformer_s12 rdnet_tiny
"""
TOKENS = """
vit_tiny_patch16_224 vit_small_patch32_224 vit_tiny_r_s16_p8_224 vit_base_patch32_clip_224 vit_small_patch16_dinov3
vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 deit_tiny_patch16_224 deit3_small_patch16_224
eva02_tiny_patch14_224
vit_base_patch16_siglip_224 vit_medium_patch16_gap_240 vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
vit_pwee_patch16_reg1_gap_256 vit_little_patch16_reg4_gap_256 flexivit_small beit_base_patch16_224 cait_xxs24_224
xcit_nano_12_p16_224 convit_tiny swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256
swinv2_cr_tiny_224
mambaout_femto pvt_v2_b0 twins_pcpvt_small twins_svt_small mvitv2_tiny davit_tiny focalnet_tiny_srf gcvit_xxtiny
maxvit_tiny_tf_224 visformer_tiny nextvit_small tiny_vit_5m_224 vitamin_small_224
"""
REFUSED = """
deit_tiny_distilled_patch16_224 nest_tiny pit_ti_224 crossvit_tiny_240 volo_d1_224 efficientformer_l1 levit_128s
hiera_tiny_224 naflexvit_base_patch16_gap
"""
COSTS = """# What CA-Stream costs, and where it attaches

Made by `python docs/make_ca_stream_table.py`.

## Operations of one forward pass

As torch counts them (a multiplication and an addition are two), 224 x 224. "Stream" is what CA-Stream adds: the sum
over stages of 4 p d + 2 d d', with p cells of d channels and d' channels in the next stage. The classifier runs once;
`forward_with_gap`, which gives the logits of both poolings, runs it twice. The thesis prints three digits behind the
point: its differences are known to 0.001 only, so that the 0.004 of ResNet-18 is anything from 0.003 to 0.005.

| network | GAP (G) | stream (G) | thesis: GAP | thesis: CA - GAP | stream against thesis |
|---|---|---|---|---|---|
"""
NETWORKS = """
## Networks of timm

With random weights and without help: the stages that were found. One training step gave each learned parameter a
gradient, changed the last projection and no bit of the backbone; then Grad-CAM and raw attention were no constant maps.
"Same" says whether the network pools by the average, so that uniform attention gives its own logits; VGG's classifier
reads 7 x 7 cells, each of which gets the query.

| network | stages | channels | learned parameters | added | Same |
|---|---|---|---|---|---|
"""


TRANSFORMERS = """
## Transformers and other networks of tokens

Made in the same way, at the size of the network. "Same" is no where the network pools by a class token or by attention.

| network | stages | channels | learned parameters | added | Same |
|---|---|---|---|---|---|
"""
REFUSALS = """
Refused with a sentence that says what to pass, `head=` for most: {names}.
"""


def flops(name: str) -> tuple[int, int]:
    """Of the plain network, and what the stream adds."""
    with torch.device("meta"):
        net, images = CAStream(torchvision.models.get_model(name)).eval(), torch.empty(1, 3, 224, 224)
        counts = []
        for run in (lambda: net.backbone(images), lambda: net(images)):
            with FlopCounterMode(display=False) as counter:
                run()
            counts.append(counter.get_total_flops())
    return counts[0], counts[1] - counts[0]


def cost(name: str) -> str:
    """The line of one network."""
    plain, stream = (n / 1e9 for n in flops(name))
    gap, ca = THESIS[name]
    ratio = stream / (ca - gap) - 1
    return f"| {name} | {plain:.3f} | {stream:.4f} | {gap} | {ca - gap:.3f} | {ratio:+.0%} |"


def try_out(name: str) -> str:
    """Attach, train one step, explain: the line of one network, or an error."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, pretrained=False, num_classes=10)
    net = CAStream(backbone).train()
    side = backbone.pretrained_cfg["input_size"][-1]
    side = side if name in TOKENS.split() else min(160, side)
    images, target = torch.randn(2, 3, side, side), torch.tensor([1, 2])
    frozen, last = net.checksums(), net.stream.blocks[-1].out.weight
    before = last.detach().clone()
    cross_entropy(net(images), target).backward()
    torch.optim.SGD(net.stream.parameters(), lr=0.1).step()
    reached = all(p.grad is not None and p.grad.isfinite().all() for p in net.stream.parameters())
    if net.checksums() != frozen or not reached or torch.equal(last, before):
        raise RuntimeError(f"expected {name} to train its stream and nothing else, but it does not.")
    for method in (GradCAM(relu=False), RawAttention()):
        S = method(net, images, target)
        if not S.isfinite().all() or degenerate(S).any():
            raise RuntimeError(f"expected maps of {name} that say something, got constant ones of {method}.")
    dims = [block.out.in_features for block in net.stream.blocks]
    learned = sum(p.numel() for p in net.stream.parameters())
    total = sum(p.numel() for p in backbone.parameters())
    stages = " ".join(f"`{stage}`" for stage in net.stages)
    channels, same = " ".join(map(str, dims)), "yes" if net.pooling == "gap" and pools_by_average(net, images) else "no"
    return f"| {name} | {stages} | {channels} | {learned:,} | {learned / total:.1%} | {same} |"


@torch.no_grad()
def pools_by_average(net: CAStream, images: torch.Tensor) -> bool:
    """Whether the head on the averages of the last stage gives the plain network's logits."""
    gap, maps = net.features(images, whole=True)
    return torch.allclose(net.head(net.backbone, maps[-1].mean((2, 3))), gap, rtol=1e-3, atol=1e-4)


def is_refused(name: str) -> bool:
    """Whether no stream attaches without help."""
    try:
        CAStream(timm.create_model(name, pretrained=False, num_classes=10))
    except ValueError:
        return True
    return False


def table() -> str:
    """The whole page."""
    costs = "\n".join(map(cost, THESIS))
    networks, tokens = ("\n".join(map(try_out, names.split())) for names in (MODELS, TOKENS))
    refused = REFUSALS.format(names=", ".join(filter(is_refused, REFUSED.split())))
    return f"{COSTS}{costs}\n{NETWORKS}{networks}\n{TRANSFORMERS}{tokens}\n{refused}"


if __name__ == "__main__":
    FILE.write_text(table())
