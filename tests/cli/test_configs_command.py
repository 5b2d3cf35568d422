"""Configurations of the package are listed, copied, and named by their stem from any folder."""

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import yaml

from interpretable_training.cli import main
from interpretable_training.cli.configs import config_files, find_config, with_paths

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_configuration_is_listed_with_its_command(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    stems = {path.stem for path in CONFIGS.rglob("*.yaml")}
    assert "interpretable-training fit --config baseline" in lines
    assert {stem for stem in stems if any(stem in line.split() for line in lines)} == stems
    assert not any("configs/" in line for line in lines)


def test_a_reader_that_ends_early_is_no_error():
    code = "import sys; from interpretable_training.cli import main; sys.stdin.readline(); main(['configs'])"
    run = subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
    run.stdout.close()
    _, errors = run.communicate("go\n", timeout=60)
    assert (run.returncode, errors) == (0, "")


def test_copies_are_the_files_and_replace_nothing(folder, capsys):
    main(["configs", "--copy", "mine"])
    copied = {path.relative_to(folder / "mine"): path.read_text() for path in (folder / "mine").rglob("*.yaml")}
    assert copied == {path.relative_to(CONFIGS): path.read_text() for path in CONFIGS.rglob("*.yaml")}
    with pytest.raises(SystemExit) as ended:
        main(["configs", "baseline", "--copy", "mine"])
    assert ended.value.code == 2
    assert "expected a folder without these configurations" in capsys.readouterr().err


def test_stem_in_a_command_is_the_file_of_the_package(folder):
    baseline = str(config_files()["baseline"])
    words = ["fit", "--config", "baseline", "--config=baseline", "-c", "baseline", "--model", "baseline"]
    assert with_paths(words) == [
        "fit",
        *["--config", baseline, f"--config={baseline}", "-c", baseline],
        *["--model", "baseline"],
    ]
    (folder / "baseline").write_text("mine")
    assert find_config("baseline") == "baseline"  # an existing file comes first
    assert find_config("baseline.yaml") == "baseline.yaml"


def test_fit_finds_a_configuration_from_an_empty_folder(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "baseline", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["class_path"].endswith("ShapesDataModule")


@pytest.mark.parametrize("words", [["fit", "--config", "baselin"], ["configs", "baselin"]])
def test_unknown_stem_names_the_closest(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "'baseline'" in capsys.readouterr().err
