"""A CLIP of another project is a model as any other, from pictures and texts to probabilities."""

import shutil

import foreign
import numpy as np
import pytest
from hub import serve
from huggingface_hub import constants

import otter_jax
from otter_jax.errors import UserError

TEXTS = ["A photo of an otter.", "the otter's  OTTERS, two of them, hold hands as they sleep"]
# transformers resizes by torchvision, open_clip by Pillow, as here.
CASES = {"hf_quick_gelu": 1e-4, "vit_custom_text": 3e-6, "resnet_bert": 3e-6}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        foreign.register(patch)
        yield {case: foreign.write(folder / case, case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_whole_pictures_and_texts_are_embedded_as_there(case, made, golden):
    model, expected = otter_jax.load(made[case]), golden("two_towers.npz")
    images, texts = model.embed_images(list(foreign.pictures())), model.embed_texts(TEXTS)
    np.testing.assert_allclose(images, expected[f"{case}|images"], atol=CASES[case])
    np.testing.assert_allclose(texts, expected[f"{case}|texts"][:2], atol=3e-6)
    logits = model.scale * images @ texts.T
    np.testing.assert_allclose(logits, expected[f"{case}|logits"][:, :2], atol=10 * CASES[case])
    library = "transformers" if case.startswith("hf") else "open_clip"
    assert model.name == f"{made[case]}, a CLIP of {library}"
    assert (model.image_size, model.max_tokens, model.folder) == (32, 12, made[case])


def test_the_identity_shows_what_weights_do_not(made, tmp_path):
    folder = shutil.copytree(made["vit_custom_text"], tmp_path / "copy")
    identity = otter_jax.load(made["vit_custom_text"]).identity
    assert otter_jax.load(folder).identity == identity
    for old, new in (("squash", "shortest"), ("bilinear", "bicubic"), ("avg", "tok")):
        file = folder / "open_clip_config.json"
        before = file.read_text()
        file.write_text(before.replace(old, new))
        assert otter_jax.load(folder).identity != identity, new
        file.write_text(before)


def test_a_name_on_the_hub_is_a_model(made, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with serve({"someone/clip": made["vit_custom_text"]}) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        model = otter_jax.load("someone/clip")
        assert model.identity == otter_jax.load(made["vit_custom_text"]).identity
        assert model.name == "someone/clip, a CLIP of open_clip"
        asked.clear()
        (tmp_path / "someone").mkdir()  # now it is a path with a slip in it
        with pytest.raises(UserError, match="There is no MODEL 'someone/clip'"):
            otter_jax.load("someone/clip")
        assert not asked


def test_what_is_wrong_with_it_is_told(made, tmp_path):
    with pytest.raises(UserError, match="weights='ema' is for the directory of a run"):
        otter_jax.load(made["vit_custom_text"], weights="ema")
    folder = shutil.copytree(made["resnet_bert"], tmp_path / "copy")
    with (folder / "vocab.txt").open("a") as file:
        file.write("\nmore")
    with pytest.raises(UserError, match="copy' has 20 tokens, but the encoder there embeds 19"):
        otter_jax.load(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\notter\nOtter")
    with pytest.warns(UserWarning, match="1 words with capitals"):
        otter_jax.load(folder)
