import subprocess
import sys

import pytest

from interpretable_training.recipes import baseline


def test_recipe_and_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(baseline(), "baseline")


def test_arguments_reach_the_objects(tmp_path):
    trainer, module, data = baseline("tiny_vit", 32, n_train=12, batch_size=4, max_epochs=3, output=str(tmp_path))
    assert type(module.network).__name__ == "TinyViT"
    assert (data.counts["train"], data.batch_size, trainer.max_epochs) == (12, 4, 3)
    assert trainer.log_dir.startswith(str(tmp_path))


@pytest.mark.slow
def test_running_the_recipe_by_name_fits(tmp_path):
    words = ["--image_size", "16", "--n_train", "64", "--max_epochs", "1", "--output"]
    command = [sys.executable, "-m", "interpretable_training.recipes", "baseline", *words, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "found in sys.modules" not in done.stderr
    folder = tmp_path / "baseline" / "version_0"
    assert (folder / "curves.png").exists()
    assert (folder / "metrics.csv").read_text().count("\n") >= 2
    assert [*(folder / "checkpoints").iterdir()]


@pytest.mark.slow
def test_tiny_cnn_learns_the_shapes(tmp_path):
    trainer, module, data = baseline(output=str(tmp_path))
    trainer.fit(module, data)
    assert trainer.checkpoint_callback.best_model_score >= 0.95
