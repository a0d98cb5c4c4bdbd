"""EXIF orientation: the same pixels when a set is made and when it is read."""

import io
import json
import struct

import numpy as np
import pytest
import records
from PIL import Image, ImageOps
from tars import write_tar

from otter_jax.data import headers, images
from otter_jax.data.build.builder import check_options
from otter_jax.data.build.plan import Options
from otter_jax.data.ensure import ensure, make, plan_of
from otter_jax.data.pipeline import eval_batches, train_batches
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.run import directory

Y, X = np.mgrid[:32, :48]
RGB = np.stack([X * 5, Y * 8, 255 - X * 5], -1).astype(np.uint8)  # no two of its turns are alike
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}}


def tagged(orientation, format="JPEG", pixels=RGB, order="<"):
    """The file of a picture with an orientation."""
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112] = "maker", orientation
    options = {"quality": 100, "subsampling": "4:4:4"} | LOSSLESS.get(format, {})
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, exif=exif, **options)
    return file.getvalue()


def upright(orientation):
    """The pixels as Pillow turns them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    img = Image.fromarray(RGB)
    img.info["exif"] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(img))


def near(found, expected, distance):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= distance


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright_and_ignoring_the_tag_leaves_them(orientation, format):
    data, distance = tagged(orientation, format), 4 * (format == "JPEG")
    near(images.decode(data), upright(orientation), distance)
    near(images.decode(data, exif="ignore"), RGB, distance)
    assert (images._orientation(data) is None) == (orientation == 1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(order):
    assert headers.orientation(tagged(6, order=order)).value == 6


@pytest.mark.parametrize("format", ["TIFF", "AVIF"])
def test_the_turn_of_a_tiff_or_an_avif_is_part_of_the_format(format):
    data = tagged(6, format)
    for exif in images.EXIF:
        near(images.decode(data, exif=exif), upright(6), 8)
        stored = images.shrink(data, 0, format="jpeg", quality=90, exif=exif)
        assert stored == ((32, 48), data, False, ())
        small = images.shrink(data, 16, format="jpeg", quality=95, exif=exif)
        assert images.decode(small.content).shape == (24, 16, 3)
        assert small.resized


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_stored_picture_is_the_same_for_all_readers(orientation, format):
    data = tagged(orientation, format)
    for exif, pixels in (("apply", upright(orientation)), ("ignore", RGB)):
        kept = images.shrink(data, 0, format="jpeg", quality=90, exif=exif)
        assert Image.open(io.BytesIO(kept.content)).format == format
        assert kept.size == pixels.shape[1::-1]
        assert kept.notes == ({"apply": images.TURNED, "ignore": images.IGNORED}[exif],)
        assert not kept.resized
        distance = 0 if format in LOSSLESS else 8
        for reading in images.EXIF:  # no tag is left that could be applied again
            near(images.decode(kept.content, exif=reading), pixels, distance)
        small = images.shrink(data, 16, format="webp", quality=100, exif=exif)
        expected = Image.fromarray(pixels).resize(
            (24, 16) if pixels.shape[1] > pixels.shape[0] else (16, 24), Image.Resampling.BICUBIC
        )
        near(images.decode(small.content), np.asarray(expected), 24)
        assert small.resized


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_ignored_tag_becomes_1_and_no_other_byte_of_the_picture_changes(format):
    data = tagged(6, format)
    stored = images.shrink(data, 0, format="jpeg", quality=90, exif="ignore").content
    assert Image.open(io.BytesIO(stored)).getexif()[0x0112] == 1
    assert Image.open(io.BytesIO(stored)).getexif()[0x010F] == "maker"
    assert len(stored) == len(data)
    changed = [n for n in range(len(data)) if data[n] != stored[n]]
    assert len(changed) <= 5  # the tag, and the checksum of a PNG's chunk
    Image.open(io.BytesIO(stored)).load()
    if format == "PNG":
        Image.open(io.BytesIO(stored)).verify()


def test_pictures_without_orientation_stay_the_bytes_they_are():
    for data in (tagged(1), tagged(1, "PNG"), tagged(0), tagged(9)):
        assert images.shrink(data, 0, format="jpeg", quality=90).content is data


def test_orientations_that_lie_out_of_the_file_or_are_no_numbers_are_none():
    data = tagged(6)
    at = data.index(b"Exif\0\0") + 6
    for place, form, value in (
        (4, "<I", 2**32 - 1),  # the directory
        (4, "<I", 60_000),
        (8, "<H", 65_535),  # its number of entries
        (0, "<H", 0),  # byte order
    ):
        broken = bytearray(data)
        struct.pack_into(form, broken, at + place, value)
        if place != 8:
            assert headers.orientation(bytes(broken)) is None
        near(images.decode(bytes(broken), exif="ignore"), RGB, 4)
    for end in range(2, len(data), 7):
        headers.orientation(data[:end])  # and no error


def test_only_the_first_of_several_frames_or_pages_is_read_and_that_is_noted():
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    for format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        file = io.BytesIO()
        frames[0].save(file, format, save_all=True, append_images=frames[1:])
        for size in (0, 16):
            stored = images.shrink(file.getvalue(), size, format="jpeg", quality=90)
            assert stored.notes == (images.FIRST,), format
        file = io.BytesIO()
        frames[0].save(file, format)
        assert images.shrink(file.getvalue(), 0, format="jpeg", quality=90).notes == (), format


@pytest.mark.parametrize("exif", images.EXIF)
def test_training_and_evaluation_see_the_pixels_that_decode_gives(exif, tmp_path):
    rows = [{"image": tagged(n, "PNG"), "caption": b"1", "key": b""} for n in range(1, 9)]
    source = Source("made:test", rows, records.features())
    sizes = {"batch_size": 8, "image_size": 32, "resize": 32, "exif": exif}
    (seen,) = eval_batches(source, **sizes)
    trained = next(
        train_batches(
            source, records.make_tokenizer(tmp_path), seed=0, flip=False, start_step=0, **sizes
        )
    )
    wholes = [upright(n) if exif == "apply" else RGB for n in range(1, 9)]
    for pixels, whole in zip(seen["image"], wholes, strict=True):
        np.testing.assert_array_equal(pixels, images.center_crop(whole, 32, 32))
    windows = {
        whole[down : down + 32, across : across + 32].tobytes()
        for whole in wholes
        for down in range(whole.shape[0] - 31)
        for across in range(whole.shape[1] - 31)
    }
    assert len({pixels.tobytes() for pixels in trained["image"]}) > 4
    assert all(pixels.tobytes() in windows for pixels in trained["image"])
    with pytest.raises(UserError, match="data.exif='no': one of apply, ignore"):
        next(eval_batches(source, **sizes | {"exif": "no"}))


def made(tmp_path, exif="apply", resize=0):
    """A set of a tar with two pictures, one of them to be turned; its home and its source."""
    tar = write_tar(
        tmp_path / "a.tar",
        [("0.jpg", tagged(6)), ("0.txt", "turned"), ("1.jpg", tagged(1)), ("1.txt", "not")],
    )
    plan = plan_of([tar], "mine", Options(exif=exif, resize=resize))
    return make(plan, str(tmp_path / "sets")), (tar,)


@pytest.mark.parametrize(("exif", "note"), [("apply", images.TURNED), ("ignore", images.IGNORED)])
@pytest.mark.parametrize("resize", [0, 16])
def test_prepare_turns_pictures_or_not_and_counts_them(exif, note, resize, tmp_path, capsys):
    home, _ = made(tmp_path, exif, resize)
    (report,) = json.loads((home / "report.json").read_text()).values()
    assert report["changed"][note] == {"count": 1, "first": ["a.tar: 0"]}
    assert f"1  {note}: a.tar: 0" in capsys.readouterr().out
    assert report["options"]["exif"] == exif
    source = open_dataset(str(tmp_path / "sets"), "mine", "train")
    (turned,) = (source[n]["image"] for n in range(2) if source[n]["caption"] == "turned")
    for reading in images.EXIF:
        height, width = images.decode(turned, exif=reading).shape[:2]
        assert (height > width) == (exif == "apply")


def test_a_set_made_otherwise_than_the_config_says_is_an_error_that_says_how_to_go_on(tmp_path):
    _, tars = made(tmp_path)
    sets = str(tmp_path / "sets")
    ensure("mine", sets, tars)
    for source in (tars, ()):
        with pytest.raises(UserError, match=r"1 pictures .* upright.*--config.data.exif=apply"):
            ensure("mine", sets, source, exif="ignore")


def test_a_set_whose_orientations_were_ignored_is_read_by_its_name_alone(tmp_path):
    _, tars = made(tmp_path, "ignore")
    sets = str(tmp_path / "sets")
    ensure("mine", sets)
    ensure("mine", sets, tars, exif="ignore")
    with pytest.raises(UserError, match=r"1 pictures .* ignored.*--config.data.exif=ignore"):
        ensure("mine", sets, tars)


def test_sets_made_before_there_was_this_option_are_accepted(tmp_path):
    home, tars = made(tmp_path)
    report = json.loads((home / "report.json").read_text())
    del report["train"]["options"]["exif"], report["train"]["changed"][images.TURNED]
    (home / "report.json").write_text(json.dumps(report))
    for exif in images.EXIF:
        check_options(home, Options(exif=exif))
        ensure("mine", str(tmp_path / "sets"), tars, exif=exif)


def test_the_config_of_a_run_from_before_this_option_says_what_it_did(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"resize": 8}}')
    assert directory.read_config(tmp_path).data.exif == "ignore"
    (tmp_path / "config.json").write_text('{"data": {"exif": "apply"}}')
    assert directory.read_config(tmp_path).data.exif == "apply"


def test_what_is_done_with_exif_is_one_of_two_words():
    with pytest.raises(UserError, match="exif='no': one of apply, ignore"):
        Options(exif="no")
