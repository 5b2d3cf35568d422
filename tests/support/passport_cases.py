"""Pairs of options under which a metric means two things, for every option of every metric."""

import torch

from interpretable_training import metrics
from interpretable_training.attribution import GradCAM, LayerCAM

M, S = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOR = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
NORMAL = {"mean": M, "std": S}
CONFIDENCE = [
    ({}, {"preset": "torchcam"}),
    (NORMAL, {"preset": "adcc"}),
    (NORMAL, {"space": "normalized"}),
    ({}, NORMAL),
    (NORMAL, {"mean": (0.5, 0.5, 0.5)}),
    (NORMAL, {"std": (0.5, 0.5, 0.5)}),
    ({}, {"topk": 10}),
    ({"topk": 10}, {"topk": 20}),
    ({}, {"score": "logit"}),
    ({}, {"score": "sigmoid"}),
]
PROBABLE = [pair for pair in CONFIDENCE if pair[1] not in ({"preset": "torchcam"}, {"score": "logit"})]
AGAIN = [
    ({}, {"attribution": GradCAM()}),
    ({"attribution": GradCAM()}, {"attribution": LayerCAM()}),
    ({"attribution": GradCAM()}, {"attribution": GradCAM(layer="0")}),
]
CURVE = [
    ({}, {"steps": 28}),
    ({"steps": 28}, {"steps": 29}),
    ({}, {"preset": "ca_stream"}),
    ({}, {"preset": "polycam"}),
    ({"preset": "polycam"}, {"preset": "tgrad"}),
    ({}, {"preset": "torchcam"}),
    ({"substrate": "min"}, {"substrate": "uniform"}),
    ({"substrate": "min"}, {"substrate": COLOR}),
    ({"substrate": COLOR}, {"substrate": COLOR + 0.1}),
    ({"substrate": "blur"}, {"substrate": "gaussian"}),
    ({"substrate": "blur"}, {"kernel": 5}),
    ({"substrate": "gaussian"}, {"kernel": 5}),
    ({}, {"auc": "mean"}),
    ({}, {"ties": "index"}),
    ({}, {"ties": "random"}),
    ({"ties": "random"}, {"seed": 1}),
    ({"substrate": "uniform"}, {"seed": 1}),
    ({}, {"x_axis": "fraction"}),
    ({"substrate": "black"}, NORMAL),
    ({"substrate": "black", **NORMAL}, {"mean": (0.5,) * 3}),
    ({"substrate": "black", **NORMAL}, {"std": (0.5,) * 3}),
    ({}, {"score": "logit"}),
    ({}, {"score": "sigmoid"}),
]
REGION = [({}, {"region": region}) for region in ("mask", "boxes", "shortcut_mask")]
BOX = [
    *REGION,
    ({}, {"preset": "casme"}),
    ({}, {"upstream": True}),
    ({}, {"iou": True}),
    ({}, {"threshold": 0.7}),
    ({}, {"connectivity": 8}),
]
FILL = [
    *[(NORMAL, {"substrate": r}) for r in ("mean", "min", "uniform", "blur", "gaussian", COLOR)],
    ({"substrate": COLOR}, {"substrate": COLOR + 0.1}),
    ({"substrate": "black"}, NORMAL),
    ({"substrate": "black", **NORMAL}, {"mean": (0.5,) * 3}),
    ({"substrate": "black", **NORMAL}, {"std": (0.5,) * 3}),
    ({"substrate": "uniform"}, {"seed": 1}),
]
REMOVED = [
    *[({}, {"substrate": r}) for r in ("min", "uniform", "blur", "gaussian", COLOR)],
    ({"substrate": COLOR}, {"substrate": COLOR + 0.1}),
    ({"substrate": "black"}, NORMAL),
    ({"substrate": "black", **NORMAL}, {"mean": (0.5,) * 3}),
    ({"substrate": "black", **NORMAL}, {"std": (0.5,) * 3}),
    ({}, {"score": "sigmoid"}),
]
CASES = {
    metrics.AverageDrop: [*CONFIDENCE, ({}, {"relative": False}), ({}, {"preset": "pytorch_grad_cam"})],
    metrics.AverageIncrease: [*CONFIDENCE, ({}, {"signed": True})],
    metrics.AverageGain: PROBABLE,
    metrics.AverageDropInDeletion: [*CONFIDENCE, ({}, {"clamp": True})],
    metrics.Insertion: CURVE,
    metrics.Deletion: CURVE,
    metrics.InsertionDeletion: CURVE,
    metrics.AOPC: [
        ({}, {"patch": 7}),
        ({}, {"steps": 9}),
        *[({}, {"substrate": r}) for r in ("mean", "black", "uniform", "blur", "gaussian", COLOR)],
        ({"substrate": COLOR}, {"substrate": COLOR + 0.1}),
        ({"substrate": "black"}, NORMAL),
        ({"substrate": "black", **NORMAL}, {"mean": (0.5,) * 3}),
        ({"substrate": "black", **NORMAL}, {"std": (0.5,) * 3}),
        ({"substrate": "uniform"}, {"seed": 1}),
        ({}, {"score": "logit"}),
    ],
    metrics.ROAD: [
        ({}, {"percentages": (10, 50)}),
        *[({}, {"score": score}) for score in ("accuracy", "sigmoid", "logit")],
        ({}, {"noise": 0.0}),
        ({}, {"seed": 1}),
    ],
    metrics.Infidelity: [*REMOVED, ({}, {"n": 9}), ({}, {"side": 0.5}), ({}, {"seed": 1})],
    metrics.SingleDeletion: [*REMOVED, ({}, {"patches": 3})],
    metrics.ARCC: [
        *AGAIN,
        ({}, {"percentages": (10, 50)}),
        *[({}, {"score": score}) for score in ("accuracy", "sigmoid")],
        ({}, {"noise": 0.0}),
        ({}, {"seed": 1}),
        (NORMAL, {"space": "pixel"}),
        ({"space": "pixel"}, NORMAL),
        ({"space": "pixel", **NORMAL}, {"mean": (0.5,) * 3}),
        ({"space": "pixel", **NORMAL}, {"std": (0.5,) * 3}),
    ],
    metrics.Coherency: [
        *AGAIN,
        ({}, {"rescale": False}),
        (NORMAL, {"space": "pixel"}),
        ({"space": "pixel"}, NORMAL),
        ({"space": "pixel", **NORMAL}, {"mean": (0.5,) * 3}),
        ({"space": "pixel", **NORMAL}, {"std": (0.5,) * 3}),
    ],
    metrics.Complexity: [],
    metrics.ADCC: [
        *AGAIN,
        ({}, {"average": "dataset"}),
        (NORMAL, {"preset": "thesis"}),
        *[(a, b) for a, b in CONFIDENCE if "preset" not in b and "space" not in b and a != NORMAL and b != NORMAL],
        ({"space": "pixel"}, NORMAL),
        (NORMAL, {"space": "pixel"}),
        ({"space": "pixel", **NORMAL}, {"mean": (0.5,) * 3}),
        ({"space": "pixel", **NORMAL}, {"std": (0.5,) * 3}),
    ],
    metrics.MaxSensitivity: [*AGAIN, ({}, {"radius": 0.02}), ({}, {"n": 9}), ({}, {"raw": True}), ({}, {"seed": 1})],
    metrics.OfficialMetric: BOX,
    metrics.LocalizationError: BOX,
    metrics.EnergyLocalizationError: [*REGION, ({}, {"energy": 0.9}), ({}, {"iou": True}), ({}, {"threshold": 0.7})],
    metrics.BoxAccuracy: [
        *REGION,
        *[({}, {"preset": preset}) for preset in ("maxboxacc", "maxboxaccv2")],
        ({}, {"components": "all"}),
        ({}, {"connectivity": 8}),
        ({}, {"deltas": (0.5,)}),
        ({}, {"steps": 10}),
        ({}, {"upstream": True}),
    ],
    metrics.PointingGame: [
        *REGION,
        *[({}, {"preset": preset}) for preset in ("saliencysense", "torchray")],
        ({}, {"ties": "fraction"}),
        ({}, {"tolerance": 3}),
    ],
    metrics.EnergyPointingGame: REGION,
    metrics.PixelF1: [
        *REGION,
        ({}, {"preset": "casme"}),
        ({}, {"per_box": True}),
        ({"per_box": True}, {"upstream": True}),
    ],
    metrics.PxAP: [*REGION, ({}, {"steps": 10})],
    metrics.SaliencyMetric: [
        ({}, {"preset": "casme"}),
        ({}, {"p_on": "image"}),
        ({}, {"connectivity": 8}),
        ({}, {"upstream": True}),
        ({}, {"score": "sigmoid"}),
    ],
    metrics.PlainAccuracy: [],
    metrics.ObjectAccuracy: [*REGION, *FILL, (NORMAL, {"substrate": "linear"})],
    metrics.BackgroundAccuracy: [*REGION, *FILL, (NORMAL, {"substrate": "black"})],
    metrics.OtherBackgroundAccuracy: [*REGION, *FILL, (NORMAL, {"substrate": "black"})],
    metrics.TopReplacedAccuracy: [*FILL, (NORMAL, {"substrate": "black"}), ({}, {"topk": 5})],
}
