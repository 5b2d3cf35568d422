"""Write docs/layers.md: which layer `layer="auto"` chooses in many models of timm, with random weights.

python docs/make_layer_table.py    # about a minute
"""

from pathlib import Path

import timm
import torch

from interpretable_training.attribution.core.auto_layer import candidates, choose_layer, scale_layers
from interpretable_training.attribution.core.prepared_model import prepare, prepare_model

FILE = Path(__file__).parent / "layers.md"
MODELS = """
resnet10t resnet18 resnext50_32x4d seresnet18 res2net50_14w_8s resnetv2_50 resnet50_clip vgg11_bn densenet121 dpn48b
mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_b0 regnety_002 convnext_atto convnextv2_atto
nfnet_f0 ghostnet_100 hrnet_w18_small inception_v3 xception41 dla34 cspresnet50 repvgg_a0 ese_vovnet19b_dw
vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224
eva02_tiny_patch14_224 vit_base_patch16_siglip_224 vit_tiny_r_s16_p8_224 cait_xxs24_224 xcit_nano_12_p16_224
swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 pvt_v2_b0 mixer_s32_224 poolformer_s12 maxvit_rmlp_pico_rw_256
coatnet_nano_rw_224 mobilevit_xxs levit_128s efficientformer_l1 focalnet_tiny_srf davit_tiny hiera_tiny_224
"""
HEAD = """# Layers: what `layer="auto"` selects

```python
saliency = GradCAM()(model, images)  # layer="auto"
saliency = GradCAM(layer="layer3")(model, images)  # a finer grid
```

`"auto"` runs one image through the model. Candidates are outputs that form a grid over the image, except those of
pooling and dropout. The last candidate with a gradient on the grid is selected. Where a class token is read, this
excludes layers after the last attention, from which patches do not reach the score. `PolyCAM` and
`HyperExpectedGradCAM` use the last layer of each grid size, outside of blocks that make the grid coarser.

Models of timm with random weights, made by `python docs/make_layer_table.py`:

| model | layer | grid | prefix tokens dropped | later candidates without gradient | one layer of each size |
|---|---|---|---|---|---|
"""


def describe(name: str) -> str:
    """The line of one model."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    with prepare_model(model) as prepared:
        images = prepare(prepared, torch.randn(1, *model.pretrained_cfg["input_size"]))
        layer = choose_layer(prepared, images)
        scales = ", ".join(f"`{candidate.name}`" for candidate in scale_layers(prepared, images))
        found = {candidate.name: candidate for candidate in candidates(prepared, images)}
    names = list(found)
    skipped = ", ".join(f"`{name}`" for name in names[: names.index(layer)])
    return f"| {name} | `{layer}` | {found[layer].grid} | {found[layer].grid.prefix or ''} | {skipped} | {scales} |"


def table() -> str:
    """The whole page."""
    return HEAD + "\n".join(map(describe, MODELS.split())) + "\n"


if __name__ == "__main__":
    FILE.write_text(table())
