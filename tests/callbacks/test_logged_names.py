"""One rule for logged names: `xai/...` in fit, `validate/xai/...` and `test/xai/...` in these stages."""

import re

import pytest
from support.watched import Memory, Module, loader, record, trainer_of

from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
    RandomizationTest,
)
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.metrics import AverageDrop

PREFIX = {"fit": "", "validate": "validate/", "test": "test/"}


@pytest.mark.parametrize("stage", PREFIX)
def test_names_of_numbers_and_pictures_follow_the_rule(tmp_path, stage):
    options = {"max_images": 3, "stages": list(PREFIX), "on_error": "raise"}
    callbacks = [
        ExplanationLogger(hardest=1, **options),
        InterpretabilityMetrics(metrics=AverageDrop(), **options),
        ExplanationDrift(**options),
        ExplanationAlarms(alike=-1.0, **options),
        RandomizationTest(max_images=2, on_error="raise"),
    ]
    logger, module = Memory(), Module()
    trainer = trainer_of(tmp_path, callbacks, logger=logger, max_epochs=1)
    if stage == "fit":
        trainer.fit(module, loader(16, 0), loader())
    else:
        getattr(trainer, stage)(module, loader(), verbose=False)
    numbers = {name for _, metrics in logger.numbers for name in metrics if "xai" in name}
    pictures = {name for _, _, images in logger.pictures for name in images}
    journal = {name for line in record(tmp_path).of("values") for name in line["values"]}
    rule = re.compile(rf"{PREFIX[stage]}xai/[\w/]+")
    for names in (numbers, pictures, journal):
        assert names
        assert [name for name in names if not rule.fullmatch(name)] == []
    assert f"{PREFIX[stage]}xai/gradcam/average_drop" in numbers & journal
    assert pictures >= {f"{PREFIX[stage]}xai/{name}" for name in ("images", "gradcam", "hardest/gradcam")}


def test_prefix_is_that_of_the_stage():
    assert {stage: ExplanationStep(stage, 0, 0, 0).prefix for stage in PREFIX} == PREFIX
