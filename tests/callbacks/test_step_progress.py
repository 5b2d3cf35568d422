"""The progress bar of a Trainer names the callback that explains, and is as before afterwards."""

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from support.watched import fit

from interpretable_training.callbacks import ExplanationLogger


class Reader(ExplanationLogger):
    """Reads the description of the bar while it explains."""

    def compute(self, session, context, step):
        bar = session.trainer.progress_bar_callback.val_progress_bar
        self.texts = [read(bar)]
        explained = super().compute(session, context, step)
        self.texts.append(read(bar))
        return explained

    def values(self, parts, step):
        self.texts.append(read(self.bars.val_progress_bar))
        return super().values(parts, step)


def read(bar):
    return bar.desc if hasattr(bar, "desc") else bar.description


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_bar_names_the_callback_and_counts_images(tmp_path, kind, capsys):
    watch = Reader(max_images=4, hardest=0, on_error="raise")
    watch.bars = kind()
    fit(tmp_path, [watch, watch.bars], enable_progress_bar=True, max_epochs=1)
    start, end, after = (text.rstrip(": ") for text in watch.texts)
    assert start == f"{after}, Reader"
    assert end == f"{after}, Reader 4 images"
    assert after.startswith("Validation")
