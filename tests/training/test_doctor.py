"""The doctor says what is wrong, and what would be slow, before anything is trained."""

import io
import shutil

import pytest
import records
import world as worlds
from PIL import Image
from tars import write_tar

from otter_jax.configs import common
from otter_jax.data.source import Source
from otter_jax.training import compiling, doctor
from otter_jax.training.contrastive import Setup


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def tiny():
    with worlds.tiny():
        yield


@pytest.fixture
def config(world, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.2)
    scope = {}
    exec((world / "config.py").read_text(), scope)
    return scope["get_config"]()


def found(config, step=False):
    """{what: (level, text)} of the last finding of each kind."""
    return {f.what: (f.level, f.text) for f in doctor.findings(config, step=step)}


def test_a_warm_up_over_much_of_the_run_is_said(config):
    config.optim.warmup_steps = 10
    steps = round(config.train.epochs * 40 / config.train.batch_size)
    texts = [f.text for f in doctor.findings(config, step=False) if f.level == "warning"]
    (text,) = [text for text in texts if "warmup" in text]
    assert f"optim.warmup_steps=10 of the run's {steps} steps" in text
    assert f"--config.optim.warmup_steps={steps // 10}," in text


def test_a_good_run_is_found_good(world, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.2)
    result = worlds.call(world, "--config.data.packed=True", name="doctor")
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    shown = [line[8:20].strip() for line in lines if line.startswith(("ok ", "warning "))]
    assert shown == [
        "config", "images", "pictures", "captions", "captions", "eval colours", "seen",
        "pipeline", "step", "step",
    ]  # fmt: skip
    for words in (
        "40 of 40 read",
        "packed, 16 captions",
        "4 names, 0 of them",
        "eval colours: 40 of 40 pictures are trained on, too",
        "compiled in",
        "pairs/s",
    ):
        assert words in result.stdout


def test_what_stops_a_run_is_an_error_and_the_exit_status_says_so(world):
    nowhere = ("--config.data.name=nowhere", "--config.data.tars=()")
    result = worlds.call(world, *nowhere, name="doctor")
    assert result.returncode == 1
    assert "error   config" in result.stdout
    assert "no data set nowhere" in result.stdout
    assert "Traceback" not in result.stderr


def test_images_that_cannot_be_read_or_are_too_large_are_told(config, tmp_path, monkeypatch):
    large = io.BytesIO()
    Image.new("RGB", (400, 300)).save(large, "JPEG")
    members = []
    for number in range(20):
        members += [(f"{number}.jpg", large.getvalue()), (f"{number}.txt", f"a square, {number}")]
    config.data.name, config.data.tars = "large", (write_tar(tmp_path / "a.tar", members),)
    level, text = found(config)["images"]
    assert level == "warning"
    assert "prepare --resize 36" in text

    def broken(data, exif):
        raise doctor.images.UnreadableImage("broken")

    monkeypatch.setattr(doctor.images, "decode", broken)
    (finding,) = doctor.look_at_images(Setup.of(config))
    assert finding.level == "error"
    assert "20 of 20 cannot be read, such as " in finding.text


def test_captions_that_are_cut_or_mostly_padding_are_told(config):
    findings = list(doctor.look_at_captions(Setup.of(config)))
    assert [f.level for f in findings] == ["ok", "warning"]
    assert "data.packed=True" in findings[1].text
    config.data.max_tokens = 3
    assert next(doctor.look_at_captions(Setup.of(config))).level == "warning"


def test_labels_that_are_no_names_are_told(config, tmp_path):
    names = tmp_path / "names.txt"
    config.eval.sets.colours.unlock()
    config.eval.sets.colours.names = str(names)
    names.write_text("red\npurple\n")
    told = [f for f in doctor.findings(config, step=False) if f.what == "eval colours"]
    assert {f.level for f in told} == {"warning"}
    assert "1 of them never right; 30 images have no label" in told[0].text
    assert "1 class has names of unknown tokens alone, such as 'purple'" in told[1].text
    names.write_text("purple\n")
    assert found(config)["eval colours"][0] == "error"


def test_a_step_that_does_not_fit_or_waits_is_told(config, monkeypatch):
    setup = Setup.of(config)
    monkeypatch.setattr(compiling, "memory_of", lambda: 1_450_000)
    findings = list(doctor.look_at_step(setup, supply=1e9))
    assert [f.level for f in findings] == ["error"]
    assert "train.batch_size=8 would fit" in findings[0].text
    monkeypatch.setattr(compiling, "memory_of", lambda: 2**40)
    findings = list(doctor.look_at_step(Setup.of(config), supply=1e-3))
    assert [f.level for f in findings] == ["ok", "warning"]
    assert "devices will wait 100% of the time" in findings[1].text


def test_pictures_with_an_exif_orientation_and_unknown_captions_are_told(config, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (40, 48)).save(file, "PNG", exif=exif)
    members = []
    for n in range(20):
        members += [(f"{n}.png", file.getvalue()), (f"{n}.txt", "red" if n else "\u732b")]
    tar = write_tar(tmp_path / "turned.tar", members)
    config.data.update(name="turned", tars=(tar,), exif="ignore", dir=str(tmp_path))
    config.eval.sets = {}
    setup = Setup.of(config)
    texts = {finding.text: finding.level for finding in doctor.look_at_captions(setup)}
    told = "1 of 20 hold nothing that the tokenizer knows, such as '\u732b' (0)"
    assert texts[told] == "warning"
    # The set itself has none any more.
    assert len(list(doctor.look_at_images(setup))) == 1
    rows = [{"image": file.getvalue(), "key": "a"}, {"image": file.getvalue(), "key": "b"}]
    setup.source = Source("made", rows, records.features())
    for exif, done in (("ignore", "it is ignored"), ("apply", "they are turned upright")):
        config.data.exif = exif
        _, turned = doctor.look_at_images(setup)
        assert turned.text.startswith("2 of 2 have an EXIF orientation, such as a; " + done)


def text_encoder(world, folder, words):
    """The world's text encoder in another folder, with a vocabulary of these words."""
    shutil.copytree(world / "text", folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    return str(folder)


def test_a_tokenizer_that_knows_no_word_of_the_captions_is_an_error(world, config, tmp_path):
    config.model.txt.weights = text_encoder(world, tmp_path / "text", ["rot", "blau", "quadrat"])
    level, text = found(config)["config"]
    assert level == "error"
    assert "knows no word of the captions: all 40 looked at become special or unknown" in text
    assert "becomes [CLS] [UNK] [UNK] [UNK] [SEP]" in text


def test_what_is_in_doubt_about_an_encoder_is_a_warning(world, config, tmp_path):
    folder = text_encoder(world, tmp_path / "text", ["a", "red", "green", "Otter", "square"])
    (tmp_path / "text/sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    config.model.txt.weights = folder
    notes = [f for f in doctor.findings(config, step=False) if f.what == "in doubt"]
    assert {note.level for note in notes} == {"warning"}
    cased, length, unknown = (note.text for note in notes)
    assert "1 words with capitals, such as 'Otter'" in cased
    assert "data.max_tokens=8, but sentence-transformers cuts texts" in length
    assert "at 6 tokens" in length
    assert "17% of the captions' words are unknown" in unknown  # blue and white of six words


def test_only_some_pictures_that_are_trained_on_are_a_warning(config):
    config.eval.sets.half = common.evaluation("squares", split="train[50%:]", label="json.colour")
    config.data.split = "train[:75%]"
    assert found(config)["seen"] == ("warning", "eval half: 10 of 20 pictures are trained on, too")


def test_a_tower_that_stays_random_is_told(config):
    assert not config.model.img.weights
    config.optim.freeze = "img/"
    (note,) = Setup.of(config).notes
    assert note.startswith("optim.freeze='img/' keeps all of img as it is, and that is random")
    config.optim.freeze = "img/conv1"
    assert not Setup.of(config).notes
