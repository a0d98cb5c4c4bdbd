"""An index has every picture's vector, embeds each file once, and is whole at any time."""

import os
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich.console
from pictures import coloured

from otter_jax.errors import Stopped, UserError
from otter_jax.predict import index, vectors
from otter_jax.predict.index import Index
from otter_jax.predict.outputs import ROWS, Parts, rows_of
from otter_jax.predict.pictures import Pictures
from otter_jax.predict.progress import Progress

ODD = os.fsdecode(b"odd\n\xff.png")
LOAD = {"model": "run", "weights": None, "step": None}


class Mean:
    """Takes a picture's mean colour for its vector, and remembers how many it saw."""

    name, identity, dim, batch_size = "mean", "0123", 3, 2

    def __init__(self):
        self.seen = 0

    def read(self, content):
        from otter_jax.data import images

        return images.center_crop(images.decode(content), 8, 8)

    def embed_pixels(self, pixels):
        self.seen += len(pixels)
        colours = pixels.mean((1, 2)).astype(np.float32) / 255
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

    def embed_texts(self, texts):
        return np.eye(3, dtype=np.float32)[[len(text) % 3 for text in texts]]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(["a.png", "b.png", "c.png", ODD, "e.png"]):
        (folder / name).write_bytes(coloured((200, 50 * number, 20), number))
    return folder


def update(out, *sources, model=None, stop=None):
    """One call of embed; `stop` ends it at that batch."""
    model = model or Mean()
    batches = iter(range(99))

    def check():
        if next(batches) == stop:
            raise Stopped

    done = index.update(
        model,
        Pictures.of([str(source) for source in sources]),
        out,
        load=LOAD,
        progress=lambda total, done: Progress(rich.console.Console(quiet=True), total, done),
        check_stop=check,
    )
    return types.SimpleNamespace(**vars(done), seen=model.seen)


def content(out):
    """Vectors by path."""
    found = Index(out)
    rows = np.concatenate(list(found.blocks()))
    paths = found.paths(range(found.count))
    assert len(set(paths.values())) == found.count == len(rows)
    return {path: rows[row] for row, path in paths.items()}


def expected(*paths):
    model = Mean()
    pixels = np.stack([model.read(path.read_bytes()) for path in paths])
    return dict(zip(map(str, paths), model.embed_pixels(pixels), strict=True))


def check(out, *paths):
    found, right = content(out), expected(*paths)
    assert found.keys() == right.keys()
    for path, vector in right.items():
        np.testing.assert_allclose(found[path], vector, atol=1e-3)  # float16


def test_an_index_has_the_vector_of_each_picture(tmp_path, photos):
    out = tmp_path / "index.parquet"
    (photos / "broken.png").write_bytes(b"broken")
    done = update(out, photos)
    assert (done.new, done.kept, done.seen) == (5, 0, 5)
    assert [os.path.basename(path) for path, _ in done.unreadable] == ["broken.png"]
    check(out, *(p for p in photos.iterdir() if p.name != "broken.png"))
    assert not (tmp_path / "index.parquet.parts").exists()


def test_only_new_and_changed_pictures_are_embedded_and_vanished_ones_dropped(tmp_path, photos):
    out = tmp_path / "index.parquet"
    update(out, photos)
    before = out.stat().st_mtime_ns
    assert update(out, photos).seen == 0
    assert out.stat().st_mtime_ns == before  # nothing to do, nothing written
    (photos / "b.png").write_bytes(coloured((0, 0, 255), 9))
    (photos / "a.png").unlink()
    (photos / "new.png").write_bytes(coloured((9, 200, 0), 9))
    done = update(out, photos)
    assert (done.new, done.changed, done.kept, done.seen) == (1, 1, 3, 2)
    assert done.vanished == [str(photos / "a.png")]
    check(out, *photos.iterdir())


def test_a_changed_file_that_cannot_be_read_any_more_is_not_found_by_its_old_vector(
    tmp_path, photos
):
    out = tmp_path / "index.parquet"
    update(out, photos)
    (photos / "b.png").write_bytes(b"broken")
    done = update(out, photos)
    assert (done.changed, len(done.unreadable)) == (0, 1)
    check(out, *(path for path in photos.iterdir() if path.name != "b.png"))
    before = out.stat().st_ino
    assert len(update(out, photos).unreadable) == 1
    assert out.stat().st_ino == before  # it stays unreadable, and the file as it is


def test_a_stopped_update_keeps_what_it_did_and_the_index_as_it_was(tmp_path, photos):
    out = tmp_path / "index.parquet"
    update(out, photos / "a.png")
    old = out.read_bytes()
    with pytest.raises(Stopped):
        update(out, photos, stop=1)
    assert out.read_bytes() == old
    done = update(out, photos)
    assert (done.seen, done.new, done.kept) == (2, 2, 3)
    check(out, *photos.iterdir())


def test_a_file_that_changed_after_a_stop_is_embedded_as_it_is_now(tmp_path, photos):
    out = tmp_path / "index.parquet"
    with pytest.raises(Stopped):
        update(out, photos, stop=1)
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(coloured((0, 0, 255), 9))
    assert update(out, photos).seen == 5
    check(out, *photos.iterdir())


def test_pictures_of_other_sources_stay_unless_they_vanished(tmp_path, photos):
    out, more = tmp_path / "index.parquet", tmp_path / "more"
    more.mkdir()
    (more / "f.png").write_bytes(coloured((0, 0, 255), 9))
    update(out, photos)
    done = update(out, more)
    assert (done.new, done.kept, done.elsewhere) == (1, 5, 5)
    (photos / "a.png").unlink()
    assert update(out, more).vanished == [str(photos / "a.png")]
    photos.rename(tmp_path / "not_mounted")
    assert update(out, more).elsewhere == 4


def test_another_models_index_is_refused_and_stays(tmp_path, photos):
    out = tmp_path / "index.parquet"
    update(out, photos)
    old, other = out.read_bytes(), Mean()
    other.identity = "4567"
    with pytest.raises(UserError, match="model '0123', not '4567'"):
        update(out, photos, model=other)
    assert out.read_bytes() == old


def test_what_is_no_index_is_said(tmp_path, photos):
    texts = tmp_path / "texts.parquet"
    vectors.embed_texts(Mean(), ["a"], texts, load=LOAD, check_stop=int, advance=lambda n: None)
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    for file, words in (
        (tmp_path / "none.parquet", "There is no index"),
        (photos, "There is no index"),
        (tmp_path / "half.parquet", "no whole Parquet file"),
        (texts, "no index of pictures: its columns are text, embedding"),
    ):
        with pytest.raises(UserError, match=words):
            Index(file)


def test_an_npz_has_float32_vectors_and_paths_in_their_order(tmp_path, photos):
    out = tmp_path / "vectors.npz"
    with pytest.raises(Stopped):
        update(out, photos, stop=1)
    assert update(out, photos).seen == 3
    found, right = np.load(out), expected(*sorted(photos.iterdir()))
    assert found["model"] == "0123"
    assert found["embeddings"].dtype == np.float32
    np.testing.assert_array_equal(found["embeddings"], [*right.values()])
    assert found["paths"][-1].endswith(r"odd\n\xff.png")
    assert [str(path) for path in found["paths"][:-1]] == [*right][:-1]
    with pytest.raises(UserError, match="there already"):
        vectors.check_out(out)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_texts_are_embedded_in_their_order_and_go_on_after_a_stop(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(vectors, "TEXTS", 2)
    out, texts, calls = tmp_path / f"texts.{ending}", ["a", "", "ccc", "dd", "犬"], iter(range(9))

    def stopping():
        if next(calls) == 2:
            raise Stopped

    told = []
    options = {"load": LOAD, "advance": told.append}
    with pytest.raises(Stopped):
        vectors.embed_texts(Mean(), texts, out, check_stop=stopping, **options)
    assert not out.exists()
    assert vectors.embed_texts(Mean(), texts, out, check_stop=int, **options) == 1
    assert told == [0, 2, 2, 4, 1]
    right = Mean().embed_texts(texts)
    if ending == "npz":
        found = np.load(out)
        names, rows = found["texts"], found["embeddings"]
    else:
        told.clear()
        monkeypatch.setattr(Mean, "embed_texts", lambda *_: pytest.fail("embedded again"))
        assert vectors.embed_texts(Mean(), texts, out, check_stop=int, **options) == 0
        assert told == [5]  # all of them are there
        with pytest.raises(UserError, match="of another command: it has other texts. Give another"):
            vectors.embed_texts(Mean(), texts[1:], out, check_stop=int, **options)
        table = pq.read_table(out)
        names = table["text"].to_pylist()
        rows = [np.frombuffer(value, np.float16) for value in table["embedding"].to_pylist()]
    assert [*names] == texts
    np.testing.assert_array_equal(rows, right)


def test_an_index_is_read_with_a_few_blocks_in_memory(tmp_path):
    out, dim, count = tmp_path / "index.parquet", 64, 20 * ROWS
    model = Mean()
    model.dim = dim
    schema = vectors.schema([], out, model, {})
    with Parts(out, schema, vectors.about(model)) as parts:
        block = np.zeros((ROWS, dim), np.float32)
        rows = pa.record_batch([vectors.packed(block, schema.field("embedding").type)], schema)
        parts.finish(rows for _ in range(20))
    before = pa.total_allocated_bytes()
    held = [
        (len(block), pa.total_allocated_bytes() - before)
        for block in vectors.blocks(rows_of(out), dim)
    ]
    assert sum(size for size, _ in held) == count
    assert max(size for _, size in held) < 5 * ROWS * dim * 2


def test_lines_of_a_file_are_texts(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa dog\n\nein Hündchen\r\n", "utf-8")
    assert vectors.texts_of(tmp_path / "a.txt") == ["a dog", "", "ein Hündchen"]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    for file, words in ((tmp_path / "a.txt", "no UTF-8"), (tmp_path / "b.txt", "No such file")):
        with pytest.raises(UserError, match=words):
            vectors.texts_of(file)
