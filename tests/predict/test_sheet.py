"""A sheet shows pictures with their lines, of a limited size, whatever the pictures are."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from otter_jax.errors import UserError
from otter_jax.predict import sheet
from otter_jax.predict.sheet import Cell, Line

RED = np.full((40, 80, 3), (255, 0, 0), np.uint8)


def drawn(tmp_path, cells, **options):
    count = sheet.draw(cells, tmp_path / "sheet.png", **options)
    with Image.open(tmp_path / "sheet.png") as img:
        return count, np.asarray(img.convert("RGB"))


def test_a_picture_keeps_its_shape_and_its_bar_has_the_length_of_its_share(tmp_path):
    cell = Cell(RED, "red.png", [Line("red", "75 %", 0.75), Line("blue", "25 %", 0.25)])
    count, pixels = drawn(tmp_path, [cell], title="Colours")
    assert count == 1
    red = (pixels == (255, 0, 0)).all(2)
    assert red.any(1).sum() * 2 == red.any(0).sum() == sheet.WIDTH
    accent = (pixels == [int(sheet.ACCENT[i : i + 2], 16) for i in (1, 3, 5)]).all(2)
    assert abs(accent.any(0).sum() - 0.75 * sheet.WIDTH) <= 3


def test_one_that_cannot_be_read_is_an_empty_frame(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    count, pixels = drawn(tmp_path, [Cell(tmp_path / "a.png", "a.png"), Cell("/gone.png", "b")])
    assert count == 2
    assert not (pixels == (255, 0, 0)).all(2).any()


def test_more_pictures_than_fit_are_left_out_without_being_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "MOST", 3)
    taken = []

    def cells():
        for number in range(10):
            taken.append(number)
            yield Cell(RED, str(number))

    assert drawn(tmp_path, cells())[0] == 3
    assert len(taken) <= 4


def test_texts_of_any_length_and_script_are_drawn_and_none_leaves_its_cell(tmp_path):
    texts = ["", "x" * 10_000, "犬", "كلب", "\ud800\x1b", "😀"]
    cells = [Cell(RED, text, [Line(text, "1 %", 2.0)]) for text in texts]
    _, pixels = drawn(tmp_path, cells, title="t" * 500, note="n" * 500)
    edge = pixels[:, -sheet.MARGIN + 2 :]
    assert (edge == 255).all()
    assert min(drawn(tmp_path, [])[1].shape[:2]) > 0


def test_a_sheet_is_a_png_in_a_folder_that_is_there(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("a.jpg", "no/a.png", "folder.png", "/proc/a.png"):
        out = tmp_path / name
        with pytest.raises(UserError, match="--sheet"):
            sheet.check_out(out)
    sheet.check_out(tmp_path / "a.png")


def test_a_sheet_that_cannot_be_written_is_told():
    with pytest.raises(UserError, match="--sheet /proc/a.png cannot be written: No such file"):
        sheet.draw([], pathlib.Path("/proc/a.png"))
