"""Private names of Lightning are those on which modules/_compat.py relies."""

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import instantiate_module

from interpretable_training.cli import main
from interpretable_training.modules import Classifier, _compat


def test_attached_trainer_is_none_or_the_trainer():
    module = Classifier("tiny_cnn", 2)
    assert _compat.attached_trainer(module) is None, "Lightning keeps the trainer elsewhere: change modules/_compat.py"
    module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert _compat.attached_trainer(module) is module.trainer


def test_command_line_saves_the_name_of_its_instantiator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [f"--data.{key}=2" for key in ("n_train", "n_val", "n_test")]
    quiet = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    model = ["--model=Classifier", "--model.network=tiny_cnn", "--model.num_classes=6"]
    main(["fit", *model, "--data=ShapesDataModule", "--data.image_size=16", *small, *quiet])
    values = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)["hyper_parameters"]
    expected = f"{instantiate_module.__module__}.{instantiate_module.__name__}"
    assert values.get(_compat.INSTANTIATOR) == expected, "Lightning uses another key: change modules/_compat.py"


@pytest.mark.parametrize("name", ["hparams.yaml", "hparams.csv"])
def test_all_hyper_parameters_that_loading_uses_are_read(tmp_path, name):
    """Lightning takes those of the file, of the checkpoint and of checkpoints of its first versions."""
    old, new = {"num_classes": 2, "network": "tiny_cnn"}, {"num_classes": 3, "network": "tiny_cnn"}
    torch.save({"hparams": old, "hyper_parameters": new, "state_dict": {}}, tmp_path / "a.ckpt")
    lines = ["key,value", "num_classes,4"] if name.endswith("csv") else ["num_classes: 4"]
    (tmp_path / name).write_text("\n".join(lines))
    values = _compat.saved_hyper_parameters(Classifier, tmp_path / "a.ckpt", tmp_path / name)
    advice = "Lightning reads hyper-parameters in another way: change modules/_compat.py"
    assert [source["num_classes"] for source in values] == [2, 3, 4], advice
    with (tmp_path / "a.ckpt").open("rb") as file:
        assert len(_compat.saved_hyper_parameters(Classifier, file, None)) == 2
        assert file.tell() == 0
