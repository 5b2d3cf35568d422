import pytest

from interpretable_training import attribution
from interpretable_training.recipes import method_table
from interpretable_training.recipes.method_table import all_methods

WRAPPERS = {"Attribution", "GradientCAM", "Baselines", "CaptumAttribution"}  # no methods of their own
CONTROLS = {"FakeCAM", "RandomMap"}  # which `evaluate` adds
ATTENTION = {"RawAttention", "AttentionRollout", "TransformerAttribution"}


def test_recipe_and_configuration_are_the_same_study(backbone, assert_same_study):
    assert_same_study(method_table(), "method_table")


def test_every_method_of_the_room_is_in_the_table(backbone):
    named = {name for name in attribution.__all__ if isinstance(getattr(attribution, name), type)}
    of_cnn = {type(method).__name__ for method in all_methods(method_table().data, "tiny_cnn").values()}
    of_vit = {type(method).__name__ for method in all_methods(method_table().data, "tiny_vit").values()}
    assert of_cnn == named - WRAPPERS - CONTROLS - ATTENTION
    assert of_vit == (of_cnn | ATTENTION) - {"CAM"}


def test_shortcut_has_another_network_and_two_more_columns(backbone):
    plain, marked = method_table("localization"), method_table("localization", shortcut=0.95)
    added = set(marked.options["metrics"]) - set(plain.options["metrics"])
    assert added == {"pointing_game_on_mark", "energy_on_mark"}
    assert (plain.data.shortcut, marked.data.shortcut) == (0.0, 0.95)
    before, after = (study.module.network.head.weight for study in (plain, marked))
    assert not before.equal(after)


@pytest.mark.parametrize("metrics", ["faithfulness", "localization"])
def test_the_table_and_the_picture_are_written(backbone, tmp_path, metrics):
    study = method_table(metrics, 0.95, image_size=32, max_images=2, output=str(tmp_path / "runs"))
    chosen = ("cam", "gradcam", "expectedgradcam", "gradient")
    study.options["methods"] = {name: study.options["methods"][name] for name in chosen}
    table = study.run()
    study.draw(study.folder() / "maps.png", blocks=2)
    assert {method for method, _ in table.cells} == {*chosen, "fakecam", "random"}
    assert {metric for _, metric in table.cells} == set(study.options["metrics"])
    assert all(cell.n == 2 for cell in table.cells.values())
    assert {"table.md", "maps.png"} <= {path.name for path in study.folder().iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["tiny_cnn", "tiny_vit"])
def test_every_method_explains_the_network(backbone, tmp_path, network):
    study = method_table("localization", network=network, max_images=2, output=str(tmp_path / "runs"))
    table = study.run()
    assert {cell.method for cell in table.cells.values()} == {*study.options["methods"], "fakecam", "random"}
    assert not any(flags.all() for name, flags in table.degenerate.items() if name != "fakecam")
