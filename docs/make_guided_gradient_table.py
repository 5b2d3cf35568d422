"""Train with and without the guided-gradient regularizer, write a table of what changes and a picture of the gradients.

python docs/make_guided_gradient_table.py runs/guided_gradient_table    # half an hour on two cores, less when resumed

Each training leaves its numbers and weights in the folder; what is there already is not done again.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from interpretable_training.attribution import GradCAM, GradCAMPlusPlus, ScoreCAM
from interpretable_training.metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion, evaluate
from interpretable_training.recipes import guided_gradient
from interpretable_training.regularization import loss_gradient
from interpretable_training.visual import denormalize, draw_sheet

DOCS = Path(__file__).parent
METHODS = {"Grad-CAM": GradCAM(), "Grad-CAM++": GradCAMPlusPlus(), "Score-CAM": ScoreCAM()}
METRICS = {
    "AD ↓": AverageDrop(),
    "AG ↑": AverageGain(),
    "AI ↑": AverageIncrease(),
    "insertion ↑": Insertion(),
    "deletion ↓": Deletion(),
}
TITLE = """# Guided gradients: table

Mean and 95 % interval (Student's t) over three seeds, 200 images; changes are paired by seed. Read the
[results](guided_gradient.md#results-on-small-data).

```sh
python docs/make_guided_gradient_table.py runs/guided_gradient_table
```
"""
WEIGHTS, SEEDS, IMAGES = (0.0, 7.5e-3, 0.1), (0, 1, 2), 200
EPOCHS = {"digits": 8, "shapes": 4}  # on shapes an epoch of regularized training takes half a minute
STUDENT = 4.303  # 97.5 % quantile of Student's t with two degrees of freedom: of three seeds


def run(data, weight, seed, folder):
    """Numbers of one training: (method, metric) or ("", name) -> value, and its recipe with the best weights."""
    recipe = guided_gradient(data, weight=weight, max_epochs=EPOCHS[data], seed=seed, output=str(folder))
    numbers, weights = folder / f"{data}-{weight}-{seed}.json", folder / f"{data}-{weight}-{seed}.pt"
    if not numbers.exists():
        recipe.trainer.progress_bar_callback.disable()
        recipe.trainer.fit(recipe.module, recipe.data)
        logged = {**recipe.trainer.callback_metrics}
        logged |= recipe.trainer.test(recipe.module, recipe.data, verbose=False)[0]
        found = {f"|{name}": float(logged[name]) for name in ("test/accuracy", "val/similarity", "val/gradient_norm")}
        recipe.data.setup("test")
        options = {"split": "test", "max_images": IMAGES, "controls": False, "progress": False}
        table = evaluate(recipe.module.network, METHODS, METRICS, recipe.data, **options)
        found |= {f"{method}|{metric}": table[method, metric].mean for method in METHODS for metric in METRICS}
        torch.save(recipe.module.network.state_dict(), weights)
        numbers.write_text(json.dumps(found))
        print(data, weight, seed, found, flush=True)
    recipe.module.network.load_state_dict(torch.load(weights))
    return {tuple(key.split("|")): value for key, value in json.loads(numbers.read_text()).items()}, recipe


def interval(values):
    """Mean and half-width of its 95 % interval over the seeds."""
    half = STUDENT * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3g} ± {half:.2g}"


def lines(data, found):
    """Rows of the table: with each weight, and what a weight changes, seed by seed."""
    plain = found[WEIGHTS[0]]
    for method, metric in plain[0]:
        cells = [interval([numbers[method, metric] for numbers in found[weight]]) for weight in WEIGHTS]
        for weight in WEIGHTS[1:]:
            pairs = zip(found[weight], plain)
            cells.append(interval([with_it[method, metric] - without[method, metric] for with_it, without in pairs]))
        yield f"| {data} | {method} | {metric} | " + " | ".join(cells) + " |"


def picture(networks, data, file):
    """The gradient of the images, brightest where largest, of networks trained with and without."""
    data.setup("test")
    first = {int(target): image for image, target in reversed([data.splits["test"][i] for i in range(100)])}
    images, target = torch.stack([first[c] for c in sorted(first)]), torch.tensor(sorted(first))
    pictures = denormalize(images, data.mean, data.std).expand(-1, 3, -1, -1)
    rows = {"image": pictures.permute(0, 2, 3, 1).mul(255).byte()}
    for name, network in networks.items():
        d = loss_gradient(network.eval(), images, target).abs().amax(1)
        d = (d / d.flatten(1).quantile(0.99, dim=1)[:, None, None]).clamp(max=1)
        rows[name] = d[..., None].expand(-1, -1, -1, 3).mul(255).byte()
    file.parent.mkdir(exist_ok=True)
    draw_sheet(rows).save(file)


def main():
    parser = argparse.ArgumentParser(description="table and picture of guided-gradient regularization")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    head = ["data", "method", "metric", *(f"weight {weight:g}" for weight in WEIGHTS)]
    head += [f"change at {weight:g}" for weight in WEIGHTS[1:]]
    rows = [TITLE, "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for data in ("digits", "shapes"):
        runs = {weight: [run(data, weight, seed, folder) for seed in SEEDS] for weight in WEIGHTS}
        rows += lines(data, {weight: [numbers for numbers, _ in found] for weight, found in runs.items()})
        networks = {f"weight {weight:g}": found[0][1].module.network for weight, found in runs.items()}
        picture(networks, runs[WEIGHTS[0]][0][1].data, DOCS / "images" / f"guided_gradient_{data}.png")
        (DOCS / "guided_gradient_table.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
