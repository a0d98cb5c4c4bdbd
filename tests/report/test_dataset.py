"""The report of a set: legible whatever captions hold, and small whatever pictures are."""

import io
import json
import re

import numpy as np
import pytest
import rich.console
from PIL import Image

from otter_jax.data.build.plan import Options
from otter_jax.data.captions import Tokenizer
from otter_jax.data.ensure import plan_of
from otter_jax.report import dataset, page

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "word"]


def write(folder, captions, size=(40, 30), suffix="jpg"):
    folder.mkdir()
    for n, caption in enumerate(captions):
        pixels = np.random.default_rng(n).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.{suffix}")
        (folder / f"{n}.txt").write_text(caption, "utf-8")
    return folder


def report_of(tmp_path, captions, **kind):
    """What is printed, report.json's split and the page of a set of these captions."""
    folder = write(tmp_path / "pairs", captions, **kind)
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("\n".join(WORDS))
    console = rich.console.Console(file=io.StringIO(), width=1000)
    home = dataset.make_with_report(
        plan_of([str(folder)], "mine", Options()),
        str(tmp_path / "sets"),
        tokenizer=Tokenizer(words, 8),
        workers=1,
        console=console,
    )
    report = json.loads((home / "report.json").read_text())["train"]
    return console.file.getvalue(), report, (home / "report.html").read_text("utf-8")


def test_captions_are_shown_as_they_are_and_never_as_html_or_formulas(tmp_path):
    odd = [
        "<script>alert(1)</script>",
        "costs $5 and $x^2",
        "שלום",
        "猫",
        "👩‍🚀",
        "a & b",
        "\u202ereverse",
    ]
    _, _, html = report_of(tmp_path, odd)
    shown = re.findall(r'<figcaption dir="auto">(.*?)</figcaption>', html)
    assert sorted(shown) == sorted(
        [
            "&lt;script&gt;alert(1)&lt;/script&gt;", "costs $5 and $x^2", "שלום", "猫", "👩‍🚀",
            "a &amp; b", "\u202ereverse",
        ]
    )  # fmt: skip
    assert "<script" not in html


def test_a_long_caption_is_shortened_where_one_sees_it(tmp_path):
    _, _, html = report_of(tmp_path, ["x" * 9_000])
    assert f">{'x' * 300}...<" in html


def test_the_page_is_one_small_file_whatever_the_pictures_are(tmp_path):
    _, _, html = report_of(tmp_path, [f"cat {n}" for n in range(30)], size=(900, 800), suffix="bmp")
    assert not re.search(r'src="(?!data:)', html)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', html)
    assert len(pictures) == dataset.SHOWN
    assert len(html) < 1 << 20
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("size", [(3000, 10), (10, 3000), (50, 40)])
def test_a_small_picture_keeps_its_shape_within_256_pixels(size):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    width, height = Image.open(io.BytesIO(dataset.small(file.getvalue()))).size
    assert max(width, height) <= dataset.SIDE
    assert (width > height) == (size[0] > size[1])


def test_captions_that_the_tokenizer_does_not_know_are_counted_and_shown(tmp_path):
    printed, report, _ = report_of(tmp_path, ["a cat", "猫", "xyz", "word"])
    assert report["tokens"]["unknown"] == 2
    assert set(report["tokens"]["unknown_first"]) == {"猫", "xyz"}
    assert "2 of 4 hold nothing that the tokenizer knows, such as '" in printed


def test_lengths_and_shares_cut_are_of_whole_captions(tmp_path):
    _, report, _ = report_of(tmp_path, ["word " * 1_900, "cat"])  # 9,500 characters
    assert report["tokens"]["100%"] == 1_902
    assert report["tokens"]["cut"] == 0.5


def test_captions_that_show_nothing_are_dropped_as_empty(tmp_path):
    unseen = ["\u200b", "\ufeff\u200d", "\u3000", "\ufe0f", "\u3164"]
    _, report, _ = report_of(tmp_path, ["cat", *unseen])
    assert report["kept"] == 1
    assert report["dropped"]["empty caption"]["count"] == len(unseen)


def test_a_set_from_before_exif_was_applied_says_so(tmp_path):
    report_of(tmp_path, ["cat"])
    home = tmp_path / "sets" / "mine" / "1.0.0"
    report = json.loads((home / "report.json").read_text())
    del report["train"]["options"]["exif"]
    (home / "report.json").write_text(json.dumps(report))
    console = rich.console.Console(file=io.StringIO(), width=1000)
    dataset.make_with_report(
        plan_of([str(tmp_path / "pairs")], "mine", Options()),
        str(tmp_path / "sets"),
        tokenizer=Tokenizer(tmp_path / "words", 8),
        workers=1,
        console=console,
    )
    assert "made before pictures were turned upright" in console.file.getvalue()


def test_a_table_has_its_numbers_at_the_right_and_texts_escaped():
    html = page.page("t", [("rows", [{"why": "<b>", "count": 1234}])])
    assert '<td dir="auto">&lt;b&gt;</td><td class="n">1,234</td>' in html
