"""Draw the maps of all methods on the same images into docs/images/methods.png.

    python docs/make_methods_figure.py    # some minutes: two small networks are trained on generated shapes

The objects' masks are known. For each method the share of its map that lies on the object is printed; a map without any
idea would have the object's share of the image.
"""

import logging
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch

from interpretable_training import attribution as a
from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier
from interpretable_training.visual import denormalize, draw_sheet, overlay

IMAGES = Path(__file__).parent / "images"


def methods(baselines):
    cams = [a.CAM(relu=True), a.GradCAM(), a.GradCAMPlusPlus(), a.SmoothGradCAMPlusPlus(), a.XGradCAM(), a.HiResCAM()]
    cams += [a.LayerCAM(), a.ScoreCAM(), a.AblationCAM(), a.EigenCAM(), a.OptiCAM(), a.PolyCAM()]
    expected = a.ExpectedGradCAM(baselines=baselines)
    cams += [expected, a.ExpectedGradCAMPlusPlus(baselines=baselines), a.GuidedExpectedGradCAM(expected)]
    cams += [a.HyperExpectedGradCAM(expected), a.FakeCAM(), a.RandomMap()]
    gradients = [a.Gradient(), a.InputXGradient(), a.IntegratedGradients(), a.ExpectedGradients(baselines)]
    gradients += [a.SmoothGrad(), a.FullGrad(), a.TGrad(), a.GuidedBackprop(), a.DeconvNet(), a.GuidedGradCAM()]
    perturbation = a.ExtremalPerturbation(steps=100, lr=0.08, growth=1.0283, step=4, sigma=8.0, blur_sigma=6.0)
    masks = [a.Occlusion(8, 4), a.RISE(n=2000), perturbation]
    captum = a.CaptumAttribution("GradientShap", call_args={"baselines": baselines})
    return [*cams, *gradients, *masks, captum]


def train(network, epochs, data):
    L.seed_everything(0, verbose=False)
    module = Classifier(
        network,
        data.num_classes,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )
    trainer = L.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, data)
    print(f"{network}: validation accuracy {trainer.callback_metrics['val/accuracy']:.3f}")
    return module.network


def one_of_each_class(data):
    data.setup("test")
    items = {}
    for item in data.splits["test"]:
        items.setdefault(item["target"], item)
    chosen = [items[target] for target in sorted(items)]
    return {name: torch.stack([torch.as_tensor(item[name]) for item in chosen]) for name in chosen[0]}


def on_object(saliency, mask):
    S = saliency.relu()
    return float(((S * mask).sum((1, 2)) / S.sum((1, 2)).clamp(min=1e-12)).mean())


def main():
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = ShapesDataModule(image_size=64, annotations=True, batch_size=32)
    batch = one_of_each_class(data)
    images, target, mask = batch["image"], batch["target"], batch["mask"]
    pictures = denormalize(images, data.mean, data.std)
    cnn = train("tiny_cnn", 8, data)
    baselines = torch.stack([data.splits["train"][i]["image"] for i in range(50)])
    rows = {"image": pictures.permute(0, 2, 3, 1).mul(255).byte()}
    print(f"{'the object itself':28s} {float(mask.float().mean()):.2f}")
    for method in methods(baselines):
        name = f"{method.algorithm} (captum)" if hasattr(method, "algorithm") else type(method).__name__
        saliency = method(cnn, images, target)
        print(f"{name:28s} {on_object(saliency, mask):.2f}", flush=True)
        rows[name] = overlay(pictures, saliency)
    vit = train("tiny_vit", 12, data)
    for method in (a.RawAttention(), a.AttentionRollout(), a.TransformerAttribution(), a.GradCAM()):
        name = f"{type(method).__name__} (ViT)"
        saliency = method(vit, images, target)
        print(f"{name:28s} {on_object(saliency, mask):.2f}")
        rows[name] = overlay(pictures, saliency)
    IMAGES.mkdir(exist_ok=True)
    draw_sheet(rows, side=96, blocks=2).save(IMAGES / "methods.png")
    print(f"wrote {IMAGES / 'methods.png'}")


if __name__ == "__main__":
    main()
