"""A journal as a training on shapes with a planted cue would leave it, made without a training."""

import math

import torch
import torch.nn.functional as F

from interpretable_training.data import ShapesDataModule
from interpretable_training.report.journal import Journal
from interpretable_training.visual import denormalize

STEPS = 94  # per epoch
METHODS = {"gradcam": 0.0, "layercam": 0.35}  # how much of each map is noise


def scenes(count, size):
    data = ShapesDataModule(image_size=size, shortcut=1.0, n_test=count, n_val=2, n_train=2, annotations=True)
    data.setup("test")
    items = [data.splits["test"][i] for i in range(count)]
    batch = {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]}
    return data, denormalize(batch["image"], data.mean, data.std), batch


def spread(mask):
    """What an 8 x 8 grid would see of a mask."""
    grid = F.adaptive_avg_pool2d(mask[:, None].float(), 8)
    return F.interpolate(F.avg_pool2d(grid, 3, 1, 1), mask.shape[1:], mode="bilinear")[:, 0]


def maps_at(share, batch, noise, generator):
    """The object's place first, the cue's later."""
    objects, cues = spread(batch["mask"]), spread(batch["shortcut_mask"])
    S = (1 - share) * objects / objects.amax((1, 2), True) + share * cues / cues.amax((1, 2), True)
    grain = F.interpolate(torch.rand(len(S), 1, 8, 8, generator=generator), S.shape[1:], mode="bilinear")[:, 0]
    return (0.4 + 3 * share) * (S + noise * grain)


def energy(maps, mask):
    return float(((maps * mask).sum((1, 2)) / maps.sum((1, 2))).mean())


def row(index, label, pred, prob, scale, S, loss=None):
    p = (S / S.sum()).clamp(min=1e-12)
    return {
        "id": f"{index}",
        "target": pred,
        "pred": pred,
        "label": label,
        "prob": prob,
        "prob_pred": prob,
        "loss": loss,
        "lo": scale[0],
        "hi": scale[1],
        "mass": float(S.mean()),
        "entropy": float(-(p * p.log()).sum()),
        "degenerate": False,
    }


def write_maps(journal, when, group, method, chosen, maps, share, labels, classes):
    file, scales = journal.save_maps(f"{group}-{method}-{when['step']}", maps)
    rows = []
    for place, index in enumerate(chosen):
        label = int(labels[index])
        wrong = group == "hardest" or (index % 5 == 0 and share < 0.5)
        pred = (label + 1) % classes if wrong else label
        prob = 0.3 + 0.65 * share * (0.8 + 0.02 * (index % 10))
        rows.append(row(index, label, pred, prob, scales[place], maps[place], 2.0 + index / 9 if wrong else None))
    height, width = min(56, maps.shape[1]), min(56, maps.shape[2])
    facts = {"group": group, "method": method, "view": "pred", "file": file, "h": height, "w": width, "weights": "raw"}
    journal.write("maps", **when, **facts, rows=rows)


def write_journal(folder, epochs=12, count=16, size=64, class_names=None, methods=METHODS, hardest=4):
    """Everything that a run can leave."""
    data, pictures, batch = scenes(count, size)
    names = class_names or data.class_names
    generator = torch.Generator().manual_seed(0)
    journal = Journal(folder)
    start(journal, names)
    for index in range(count):
        journal.save_image(str(index), pictures[index], int(batch["target"][index]))
    for epoch in range(epochs):
        share = 1 / (1 + math.exp(-(epoch - epochs / 2.6) * 9 / epochs))
        when = {"epoch": epoch, "step": (epoch + 1) * STEPS, "stage": "fit"}
        values, rows = {}, {}
        for method, noise in methods.items():
            maps = maps_at(share, batch, noise, generator)
            write_maps(journal, when, "panel", method, range(count), maps, share, batch["target"], len(names))
            if hardest:
                chosen = [(epoch * 3 + k * 5) % count for k in range(hardest)]
                S = maps[chosen]
                write_maps(journal, when, "hardest", method, chosen, S, share, batch["target"], len(names))
            values |= numbers(method, maps, batch, share, noise)
            rows[method] = share
        journal.write("values", **when, callback="InterpretabilityMetrics", values=values)
        told(journal, when, share, values, epoch, count, list(methods))
    ended(journal, epochs, list(methods))
    return journal


def start(journal, names):
    settings = {
        "ExplanationLogger": {"methods": {"gradcam": "GradCAM(layer='auto')"}, "images": 16, "every_n_epochs": 1},
        "InterpretabilityMetrics": {"metrics": ["average_drop", "insertion"], "max_images": 64, "controls": False},
    }
    probe = [["network", "network (TinyCNN) of Classifier"], ["batches", "tuple of 2: images 0, labels 1"]]
    probe += [["layer", "features.6, grid 8 x 8"], ["colors", "mean and std of ShapesDataModule"]]
    journal.write("run", classes=list(names), model="Classifier", settings=settings, probe=probe)
    drop = {"metric": "AverageDrop", "formula": "mean of relu(p - o) / p", "direction": "lower is better"}
    gain = {"metric": "Insertion", "formula": "area under p while pixels appear", "direction": "higher is better"}
    journal.write("passport", metric="average_drop", facts={**drop, "range": "0 to 100", "mask_mean": None})
    journal.write("passport", metric="insertion", facts={**gain, "range": "0 to 100", "steps": 10})


def numbers(method, maps, batch, share, noise):
    values = {
        "average_drop": 40 - 18 * share + 12 * noise,
        "insertion": 35 + 45 * share - 10 * noise,
        "energy_on_object": energy(maps, batch["mask"]),
        "energy_on_cue": energy(maps, batch["shortcut_mask"]),
    }
    return {f"xai/{method}/{name}": value for name, value in values.items()}


def told(journal, when, share, values, epoch, count, methods):
    """What the other callbacks and the project itself say in an epoch."""
    loss = {"train/loss": 1.7 * math.exp(-0.35 * epoch) + 0.05, "val/loss": 1.8 * math.exp(-0.3 * epoch) + 0.12}
    accuracy = {"val/accuracy": 1 - 0.8 * math.exp(-0.45 * epoch)}
    journal.write("training", **when, values={**loss, **accuracy, "lr-AdamW": 1e-3 * 0.8**epoch})
    for method in methods:
        rows = []
        for index in range(count):
            near = {"similarity": 1 - 0.5 * math.exp(-((epoch - 4) ** 2) / 6) - 0.01 * (index % 4), "shift": 0.1}
            first = {"similarity": 1 - 0.9 * share, "shift": 0.8 * share}
            rows.append({"id": str(index), "previous": near if epoch else None, "first": first, "best": None})
        journal.write("drift", **when, method=method, rows=rows)
    on_cue = values[f"xai/{methods[0]}/energy_on_cue"]
    if on_cue > 0.1:
        message = f"{on_cue:.0%} of the map's energy lies on the planted cue, above the threshold of 10%"
        journal.write(
            "alarm", **when, name=f"xai/{methods[0]}/energy_on_cue", value=on_cue, threshold=0.1, message=message
        )
    for number, callback in enumerate(("ExplanationLogger", "InterpretabilityMetrics", "ExplanationDrift")):
        seconds = (0.41, 0.62, 0.05)[number] + 0.02 * (epoch % 3)
        cost = {"xai/seconds": seconds, "xai/share_of_epoch": seconds / 32, "xai/megabytes": 0.05 + 0.1 * (not number)}
        journal.write("values", **when, callback=callback, values=cost)


def ended(journal, epochs, methods):
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    for epoch in (3, 4):
        when = {"epoch": epoch, "step": (epoch + 1) * STEPS, "stage": "fit"}
        journal.write("failure", **when, callback="InterpretabilityMetrics", reason=reason, first=epoch == 3)
    journal.write("dropped", epoch=5, step=6 * STEPS, callback="ExplanationLogger", what="8 of 16 images")
    when = {"epoch": epochs - 1, "step": epochs * STEPS}
    rows = [
        {"method": method, "similarity": {"spearman": 0.12, "ssim": 0.3}, "passed": True, "rule": "spearman < 0.5"}
        for method in methods
    ]
    journal.write("randomization", **when, rows=rows)
    test = {f"test/xai/{method}/average_drop": 21.4 for method in methods}
    test |= {f"test/xai/{method}/insertion": 78.2 for method in methods}
    journal.write("values", **when, stage="test", callback="InterpretabilityMetrics", values=test)
