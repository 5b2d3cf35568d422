import torch
from PIL import Image

from interpretable_training.visual import denormalize, draw_panel, overlay


def test_denormalize_undoes_a_normalization_and_stays_in_range():
    images = torch.tensor([-1.0, 0.0, 10.0]).view(1, 1, 1, 3)
    shown = denormalize(images, mean=(0.5,), std=(0.25,))
    assert shown.flatten().tolist() == [0.25, 0.5, 1.0]


def test_the_picture_is_brightest_where_the_map_is_highest():
    saliency = torch.zeros(1, 8, 8)
    saliency[0, 2:4, 5:7] = 3.0
    shown = overlay(torch.full((1, 3, 8, 8), 0.2), saliency)
    assert shown.dtype == torch.uint8
    assert shown.shape == (1, 8, 8, 3)
    brightness = shown[0].float().mean(2)
    assert brightness[2:4, 5:7].min() > brightness[0, 0] + 50


def test_a_single_bright_pixel_does_not_darken_the_rest():
    saliency = torch.zeros(1, 20, 20)
    saliency[0, 10:] = 1.0
    with_outlier = saliency.clone()
    with_outlier[0, 0, 0] = 1000.0
    pictures = torch.full((1, 3, 20, 20), 0.5)
    assert torch.equal(overlay(pictures, saliency)[0, 10:], overlay(pictures, with_outlier)[0, 10:])


def test_maps_of_constants_and_of_nan_show_the_gray_picture():
    pictures = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    flat = torch.stack([torch.full((6, 6), 7.0), torch.full((6, 6), torch.nan)])
    shown = overlay(pictures, flat).float()
    assert torch.corrcoef(torch.stack([shown.mean(3).flatten(), pictures.mean(1).flatten()]))[0, 1] > 0.99


def test_a_panel_has_a_row_for_every_name_and_a_column_for_every_picture(tmp_path):
    white = torch.full((4, 5, 5, 3), 255).byte()
    rows = {"black": torch.zeros(4, 5, 5, 3).byte(), "white": white, "black again": torch.zeros(4, 5, 5, 3).byte()}
    draw_panel(rows, tmp_path / "panel.png", inch=1.0)
    picture = torch.frombuffer(bytearray(Image.open(tmp_path / "panel.png").convert("L").tobytes()), dtype=torch.uint8)
    width, height = Image.open(tmp_path / "panel.png").size
    middle = picture.view(height, width)[:, -60]  # through the last column of pictures
    assert height == 3 * 120
    assert [int(middle[line]) for line in (60, 180, 300)] == [0, 255, 0]
