import pytest
from support.wandb_reader import Run


@pytest.fixture
def offline_wandb(tmp_path, monkeypatch):
    """W&B offline and in a folder of its own; a function that finishes the run and reads it back."""
    import wandb

    for folder in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{folder}", str(tmp_path))
    for name, value in {"MODE": "offline", "CONSOLE": "off", "SILENT": "true", "X_DISABLE_STATS": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)  # where a WandbLogger without save_dir writes, whatever WANDB_DIR says

    def end():
        wandb.finish()  # and forget the run
        wandb.teardown()  # and wait for the service, which may still be writing

    def read():
        end()
        return Run(tmp_path / "wandb")

    yield read
    end()
