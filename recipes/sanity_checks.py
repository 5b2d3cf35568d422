"""Check which methods pass the sanity checks: do maps depend on the training of the network?

    python -m interpretable_training.recipes sanity_checks

trains a small network on generated shapes, watched by `RandomizationTest`, and a twin of it that memorizes random
labels. Then it prints a table like Table 3 of Mohamed et al., A review of visualisation-as-explanation techniques for
convolutional neural networks and their evaluation: pass or fail for each method and check, with the deciding number
and the rule. A star marks a disagreement with the review; the measured numbers are printed below the table.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.attribution import (
    DeconvNet,
    EigenCAM,
    FakeCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    InputXGradient,
    IntegratedGradients,
    LayerCAM,
    RandomMap,
    ScoreCAM,
    SmoothGrad,
    TGrad,
)
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.batches.read import pick
from interpretable_training.callbacks import RandomizationTest, TrainingCurves
from interpretable_training.data import ShapesDataModule
from interpretable_training.files import write_whole
from interpretable_training.metrics import (
    DataRandomization,
    InputInvariance,
    ParameterRandomization,
    SanityTable,
    memorize,
)
from interpretable_training.metrics.sanity.checks import Check
from interpretable_training.models import build_network
from interpretable_training.modules import Classifier
from interpretable_training.recipes.recipe import Recipe

PASS = ("gradient", "smoothgrad", "gradcam", "gradcamplusplus", "scorecam")
FAIL = ("inputxgradient", "integratedgradients", "guidedbackprop", "guidedgradcam")
# Results of the review's table, as far as it has them. Input invariance of integrated gradients depends on the
# reference point; black does not shift with the input, so the check fails.
EXPECTED: Mapping[str, Mapping[str, str]] = {
    "parameter randomization": dict.fromkeys(PASS, "pass") | dict.fromkeys(FAIL, "fail"),
    "data randomization": dict.fromkeys(PASS, "pass") | dict.fromkeys(FAIL, "fail"),
    "input invariance": {
        "gradient": "pass",
        "inputxgradient": "fail",
        "smoothgrad": "pass",
        "integratedgradients": "fail",
        "guidedbackprop": "pass",
    },
}
READ_BIASES = (FullGrad, TGrad)  # their maps depend on how the network undoes a shift


def sanity_checks(
    network: str = "tiny_cnn",
    image_size: int = 64,
    n_train: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_epochs: int = 4,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a network on shapes, and test its explanations at the end of the training.

    Args:
        network: "tiny_cnn", "tiny_vit" or the name of a timm model.
        image_size: Side of the images.
        n_train: Number of training images.
        batch_size: Images per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ShapesDataModule(image_size, n_train=n_train, batch_size=batch_size, seed=seed)
    module = Classifier(
        network,
        data.num_classes,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),  # without it validation jumps up and down
    )
    watched = {"gradcam": GradCAM(), "gradient": Gradient(), "guidedbackprop": GuidedBackprop()}
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="sanity_checks"),
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(monitor="val/accuracy", mode="max"),
            TrainingCurves(),
            RandomizationTest(watched, max_images=16, test=ParameterRandomization()),
        ],
    )
    return Recipe(trainer, module, data)


def checked_methods() -> dict[str, Attribution]:
    """Return the methods of the review's table, others, and two controls."""
    return {
        "gradient": Gradient(),
        "inputxgradient": InputXGradient(),
        "smoothgrad": SmoothGrad(n=20),
        "integratedgradients": IntegratedGradients(),
        "guidedbackprop": GuidedBackprop(),
        "gradcam": GradCAM(),
        "gradcamplusplus": GradCAMPlusPlus(),
        "scorecam": ScoreCAM(),
        "guidedgradcam": GuidedGradCAM(),
        "deconvnet": DeconvNet(),
        "hirescam": HiResCAM(),
        "layercam": LayerCAM(),
        "eigencam": EigenCAM(),
        "fullgrad": FullGrad(),
        "tgrad": TGrad(),
        "fakecam (control)": FakeCAM(),
        "random (control)": RandomMap(),
    }


def run_checks(recipe: Recipe, by_heart: int = 1200, explained: int = 32) -> SanityTable:
    """Run all checks on the trained network.

    Args:
        recipe: Recipe after its training.
        by_heart: Number of training images that the twin memorizes with random labels.
        explained: Number of validation images to explain.
    """
    model, data = recipe.module.eval(), recipe.data
    data.setup("fit")
    train = [pick(batch, strict=True).pair() for batch in data.train_dataloader()]
    images, target = (torch.cat(part)[:by_heart].to(model.device) for part in zip(*train))
    test = [pick(batch, strict=True).pair() for batch in data.val_dataloader()]
    shown, label = (torch.cat(part)[:explained].to(model.device) for part in zip(*test))
    by_labels = DataRandomization()
    twin = twin_of(recipe).to(model.device)
    memorize(twin, images, by_labels.shuffled(target.cpu()).to(target), weight_decay=0.0)
    checks = ParameterRandomization()(model, checked_methods(), shown)
    checks += by_labels(model, twin, checked_methods(), shown, label)
    by_input = {name: method for name, method in checked_methods().items() if not isinstance(method, READ_BIASES)}
    by_bias = {name: method for name, method in checked_methods().items() if isinstance(method, READ_BIASES)}
    checks += InputInvariance()(model, by_input, shown)
    if by_bias:
        checks += InputInvariance(undo="bias")(model, by_bias, shown)
    return SanityTable(checks, EXPECTED)


def twin_of(recipe: Recipe) -> torch.nn.Module:
    """Return the same architecture, untrained."""
    name, classes = recipe.module.hparams["network"], recipe.module.hparams["num_classes"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(name, classes)


def disagreement(check: Check, expected: str) -> str:
    """Return the measured numbers of a check that disagrees with the literature."""
    numbers = ", ".join(f"{kind} {value:.2f}" for kind, value in check.similarity.items())
    lines = [f"{check.method}, {check.test}: the literature says {expected}; {numbers}."]
    curve = check.curves.get(check.decided_by)
    if curve:
        lines.append(f"  {check.decided_by}, from the output on: " + ", ".join(f"{value:.2f}" for value in curve))
    return "\n".join(lines)


def sanity_checks_report(recipe: Recipe, by_heart: int = 1200, explained: int = 32) -> str:
    """Write the table, and return it with the disagreements with the literature and the names of the files."""
    table = run_checks(recipe, by_heart, explained)
    notes = [disagreement(check, EXPECTED[check.test][check.method]) for check in table.disagreements()]
    folder = Path(recipe.trainer.log_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)  # the logger makes it when it first writes
    text = "\n".join([table.to_text(), *notes])
    write_whole(folder / "sanity.txt", text + "\n")
    write_whole(folder / "sanity.md", table.to_markdown())
    return f"{text}\n\nWritten to {folder}: sanity.txt, sanity.md"
