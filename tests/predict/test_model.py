"""Pictures and texts become vectors, and vectors names, in whatever form and number they come."""

import io

import numpy as np
import PIL.Image
import pytest
from pictures import encoded

from otter_jax.data import images
from otter_jax.errors import UserError

PHOTO = np.random.RandomState(1).randint(0, 256, (60, 90, 3)).astype(np.uint8)


def test_a_picture_is_the_same_in_every_form(model, tmp_path):
    content = encoded(PHOTO, "PNG")
    (tmp_path / "a.png").write_bytes(content)
    forms = [
        PHOTO,
        content,
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        PIL.Image.fromarray(PHOTO),
        PIL.Image.open(io.BytesIO(content)),
    ]
    expected = images.center_crop(images.decode(content), 40, 32)  # as evaluation does
    for form in forms:
        np.testing.assert_array_equal(model.read(form), expected)
    vectors = model.embed_images(forms)
    np.testing.assert_allclose(vectors, np.repeat(vectors[:1], 6, axis=0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_grey_and_transparent_arrays_are_read_as_their_files_are(model):
    grey = PHOTO[..., 0]
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(model.read(array), model.read(encoded(grey, "PNG")))
    transparent = np.dstack([PHOTO, grey])
    np.testing.assert_array_equal(model.read(transparent), model.read(encoded(transparent, "PNG")))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_pil_image_is_turned_upright_as_its_file_is(model, format):
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(PHOTO).save(file, format, exif=exif)
    np.testing.assert_array_equal(model.read(PIL.Image.open(file)), model.read(file.getvalue()))
    upright = PIL.Image.fromarray(PHOTO).rotate(-90, expand=True)
    if format != "JPEG":
        np.testing.assert_array_equal(model.read(file.getvalue()), model.read(upright))


def test_what_is_no_picture_is_named(model, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for picture, words in (
        (tmp_path / "none.png", "none.png cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "a.txt", "a.txt cannot be read: no picture: "),
        (b"hello", "The picture of 5 bytes cannot be read: no picture"),
        ("https://example.com/a.jpg", "is an address: fetch the picture"),
        (PHOTO / 255.0, r"float64, 60 x 90 x 3.* its range is not known.*\(array \* 255\)"),
        (PHOTO.astype(np.int64), "int64.* give uint8, 0..255.$"),
        (PHOTO.transpose(2, 0, 1), "the channels last"),
        (PHOTO[None], "1 x 60 x 90 x 3.* is no picture"),
        (PHOTO[:0], "is no picture"),
    ):
        with pytest.raises(UserError, match=words):
            model.read(picture)
    with pytest.raises(UserError, match="none.png"):
        model.embed_images([PHOTO, tmp_path / "none.png"])


def test_one_picture_or_text_in_place_of_several_is_an_error(model):
    for call, given in (
        (model.embed_images, "a.jpg"),
        (model.embed_images, PHOTO),
        (model.embed_texts, "a dog"),
        (lambda given: model.classify([PHOTO], given), "dog"),
        (lambda given: model.classify(given, ["dog"]), "a.jpg"),
    ):
        with pytest.raises(UserError, match=r"takes a list .*put it in \[ \]"):
            call(given)


@pytest.mark.parametrize("number", [0, 1, 3, 9, 70])
def test_numbers_and_lengths_do_not_change_what_comes_out(model, number):
    pictures = np.random.RandomState(0).randint(0, 256, (number, 32, 32, 3)).astype(np.uint8)
    texts = [f"a dog {'sofa ' * (7 * i % 50)}" for i in range(number)]
    vectors = model.embed_pixels(pictures)
    assert vectors.shape == (number, 6)
    assert model.embed_images(list(pictures)).shape == (number, 6)
    for i in {0, number // 2, number - 1} if number else ():
        np.testing.assert_allclose(
            vectors[i], model.embed_pixels(pictures[i : i + 1])[0], atol=1e-6
        )
    embedded = model.embed_texts(texts)
    assert embedded.shape == (number, 6)
    for i in range(min(number, 9)):
        np.testing.assert_allclose(embedded[i], model.embed_texts([texts[i]])[0], atol=1e-6)


def test_classes_are_ranked_by_cosine_and_probabilities_are_the_softmax(model):
    names = ["dog", "cat", "sofa", ["sea otter", "otter"], "red"]
    vector = model.embed_images([PHOTO])[0]
    bank = model.bank(names)
    cosines = bank @ vector
    chances = np.exp(20 * cosines) / np.exp(20 * cosines).sum()
    (guesses,) = model.classify([PHOTO], names, top=3)
    order = np.argsort(-cosines)
    assert [guess.name for guess in guesses] == [
        ["dog", "cat", "sofa", "sea otter", "red"][i] for i in order[:3]
    ]
    np.testing.assert_allclose([g.probability for g in guesses], chances[order[:3]], rtol=1e-4)
    np.testing.assert_allclose([g.cosine for g in guesses], cosines[order[:3]], atol=1e-6)
    both = model.embed_texts(["a photo of sea otter.", "a photo of otter."]).sum(axis=0)
    np.testing.assert_allclose(bank[3], both / np.linalg.norm(both), atol=1e-6)


def test_with_multi_a_class_is_judged_alone_against_anything(model):
    names = ["dog", "cat", "something"]
    (all_,) = model.classify([PHOTO], names, multi=True)
    (one,) = model.classify([PHOTO], ["dog"], multi=True)
    found = {guess.name: guess.probability for guess in all_}
    assert found["dog"] == pytest.approx(one[0].probability, rel=1e-5)
    assert found["something"] == pytest.approx(0.5)
    (alone,) = model.classify([PHOTO], ["dog"])
    assert alone[0].probability == pytest.approx(1)


def test_templates_are_texts_one_text_or_a_file(model, tmp_path):
    (tmp_path / "templates.txt").write_text("a {c}\na photo of {}.\n")
    one, several = model.bank(["dog"], "a {}"), model.bank(["dog"], ["a {}", "a photo of {}."])
    np.testing.assert_array_equal(model.bank(["dog"], str(tmp_path / "templates.txt")), several)
    assert not np.allclose(one, several, atol=1e-3)
    with pytest.raises(UserError, match=r"each needs \{\} where the name"):
        model.bank(["dog"], "a dog")
    with pytest.raises(UserError, match="no class names"):
        model.bank([])


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (["dog", []], {}, r"Class 1 is \[\]: give a name"),
        (iter([]), {}, "There are no class names"),
        (["dog"], {"top": 0}, "top=0"),
    ],
)
def test_classes_that_are_none_are_told(model, names, more, words):
    with pytest.raises(UserError, match=words):
        model.classify([np.zeros((8, 8, 3), np.uint8)], names, **more)


def test_classes_may_come_from_an_iterator(model):
    grey = np.full((8, 8, 3), 99, np.uint8)
    assert model.classify([grey], iter(["dog", "cat"])) == model.classify([grey], ["dog", "cat"])
