import numpy as np
import pytest
import torch

from interpretable_training.visual import draw_sheet
from interpretable_training.visual.sheet import clip, readable, type_face, wrapped

FACE = type_face(12)


def gray(value, count=4, height=5, width=5):
    return torch.full((count, height, width, 3), value).byte()


def pixels(sheet):
    return torch.from_numpy(np.array(sheet.convert("L")))


def test_sheet_has_row_per_name_and_column_per_picture():
    sheet = pixels(draw_sheet({"black": gray(0), "gray": gray(99), "black again": gray(0)}, side=100))
    assert sheet[[50, 153, 256], -50].tolist() == [0, 99, 0]
    colored = (sheet[153] == 99).int()
    assert int(colored.sum()) == 4 * 100
    assert int((colored.diff() == 1).sum()) == 4


def test_sheet_blocks_stand_side_by_side():
    sheet = pixels(draw_sheet({name: gray(10 * i) for i, name in enumerate("abcd")}, side=60, blocks=2))
    half = sheet.shape[1] // 2
    middle = [sheet[y, x] for x in (half - 30, 2 * half - 30) for y in (30, 93)]
    assert [int(value) for value in middle] == [0, 10, 20, 30]


def test_sheet_keeps_the_shape_of_pictures():
    sheet = pixels(draw_sheet({"wide": gray(9, 2, 20, 40), "small": gray(9, 2, 5, 10)}, side=80))
    ys, xs = (sheet == 9).nonzero().T
    assert len(ys) == 4 * 80 * 40
    assert len(ys.unique()) == 2 * 40
    assert len(xs.unique()) == 2 * 80


def test_sheet_captions_stay_within_their_columns():
    rows = {"image": gray(200, 3)}
    sheets = [draw_sheet(rows, captions, side=90) for captions in (["", "", ""], ["", "W" * 300, ""], ["", "cat", ""])]
    empty, long, short = map(pixels, sheets)
    margin = empty.shape[1] - 3 * 93
    for sheet in (long, short):
        changed = (sheet != empty).nonzero()
        assert len(changed) > 20
        assert changed[:, 1].min() >= margin + 93
        assert changed[:, 1].max() < margin + 93 + 90
        assert changed[:, 0].max() < empty.shape[0] - 90  # above the pictures


def test_captions_break_between_words_and_end_after_three_lines():
    assert wrapped("cat 0.93 (dog)", FACE, 200) == ["cat 0.93 (dog)"]
    text = "star at 30,6 to 58,34 (1 of 5) 0.53 (triangle)"
    lines = wrapped(text, FACE, 112)
    assert len(lines) == len(wrapped("word " * 30, FACE, 60)) == 3
    assert " ".join(lines[:2]) == text[: len(" ".join(lines[:2]))]
    assert all(FACE.getlength(line) <= 112 for line in lines)
    assert draw_sheet({"a": gray(9, 1)}, [text]).height == draw_sheet({"a": gray(9, 1)}, ["x y z"]).height + 2 * (
        draw_sheet({"a": gray(9, 1)}, ["x"]).height - draw_sheet({"a": gray(9, 1)}).height
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat 0.93 (dog)", "cat 0.93 (dog)"),
        ("a\n b\t c", "a b c"),
        ("Größe, łódź, Ελλάδα, кошка ↓≤", "Größe, łódź, Ελλάδα, кошка ↓≤"),
        ("🦊/日本", "?/??"),
        ("\u202eevil\u200b", "?evil?"),
        ("\ud800</script>", "?</script>"),
    ],
)
def test_missing_glyphs_become_question_marks(text, shown):
    assert readable(text, FACE) == shown


def test_clipped_text_fits():
    for width in (5, 30, 80):
        assert FACE.getlength(clip("m" * 50, FACE, width)) <= max(width, FACE.getlength("…"))
    assert clip("short", FACE, 80) == "short"
    assert clip("much too long", FACE, 50).endswith("…")


def test_sheet_limits_the_width_of_names():
    sheet = draw_sheet({"x" * 300: gray(9, 1)}, side=50)
    assert sheet.width < 4 * 50


def test_sheet_refuses_rows_of_different_length():
    with pytest.raises(ValueError, match="expected rows and captions of one length, got"):
        draw_sheet({"a": gray(0, 4), "b": gray(0, 3)})
    with pytest.raises(ValueError, match="'captions': 2"):
        draw_sheet({"a": gray(0, 4)}, ["x", "y"])
