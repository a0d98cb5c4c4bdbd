"""Tars are read whatever packs, joins, links or breaks them; what cannot be read is named."""

import bz2
import gzip
import lzma
import tarfile

import pyarrow as pa
import pytest
from pictures import noise
from tars import pairs, write_tar

from otter_jax.data.build.plan import WINDOW
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import keys, tars
from otter_jax.data.formats.reading import Reading


def read(path, **reading):
    """The captions by key, and {reason: names} of what was dropped or changed, of a tar."""
    tally = Tally()
    unit = tars.Tar(path, path.stat().st_size, Reading(**reading))
    found = {record.fields["key"]: record for record in unit.read(tally)}
    told = tally.found["dropped"] | tally.found["changed"]
    return found, {why: entry["first"] for why, entry in told.items()}


def member(name, content=b"", **fields):
    """The bytes of a tar's member, without an end marker."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_packed_tars_and_joined_ones_are_read_to_the_end_of_the_file(tmp_path, suffix):
    def packed(content):
        if suffix == "tar.zst":
            return pa.compress(content, "zstd", asbytes=True)
        functions = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
        return functions.get(suffix, bytes)(content)

    path = tmp_path / f"joined.{suffix}"
    write_tar(tmp_path / "one", pairs(range(3)))
    write_tar(tmp_path / "two", pairs(range(3, 6)))
    parts = [(tmp_path / name).read_bytes() for name in ("one", "two")]
    path.write_bytes(b"".join(map(packed, parts)))
    found, told = read(path)
    assert list(found) == [f"{n:04}" for n in range(6)]
    assert [found[key].image for key in found] == [noise(n) for n in range(6)]
    assert told == {}


def test_keys_of_joined_tars_are_those_of_each_or_of_all_together(tmp_path):
    path = tmp_path / "a.tar"
    whole = [("a.jpg", noise(1)), ("a.txt", "first"), ("b.jpg", noise(1)), ("b.txt", "first")]
    other = [("a.txt", "second"), ("a.jpg", noise(2)), ("c.jpg", noise(2)), ("c.txt", "second")]
    halves = [("d.jpg", noise(3))], [("d.txt", "third")], [("d.txt", "alone")]
    joined = b""
    for members in (whole, other, *halves):
        write_tar(path, members)
        joined += path.read_bytes()
    path.write_bytes(joined)
    tally = Tally()
    records = list(tars.Tar(path, 0).read(tally))
    found = sorted((r.fields["key"], r.fields["caption"], r.image == noise(2)) for r in records)
    assert found == [
        ("a", "first", False), ("a", "second", True), ("b", "first", False),
        ("c", "second", True), ("d", "third", False),
    ]  # fmt: skip
    assert tally.found["dropped"] == {"caption without image": {"count": 1, "first": ["a.tar: d"]}}


def test_names_are_the_same_however_unicode_composes_them(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("e\u0301.jpg", noise()), ("\u00e9.txt", "x")])
    found, told = read(path)
    assert list(found) == ["\u00e9"]
    assert told == {}


def test_what_follows_an_end_marker_and_is_no_tar_is_named(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, pairs(range(2)))
    path.write_bytes(path.read_bytes() + b"junk" * 500)
    found, told = read(path)
    assert len(found) == 2
    ((why, names),) = told.items()
    assert why == "rest of a broken tar"
    assert names[0].startswith("a.tar: after 10,240 bytes: ")


def test_a_damaged_header_and_a_missing_end_are_named_in_joined_tars(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(member("a.jpg", noise()) + member("a.txt", b"one"))
    found, told = read(path)
    assert list(found) == ["a"]
    assert "the file ends, without an end marker" in told["rest of a broken tar"][0]
    damaged = bytearray(member("b.jpg", noise()))
    damaged[3] ^= 1
    path.write_bytes(member("a.jpg", noise()) + member("a.txt", b"one") + damaged)
    found, told = read(path)
    assert list(found) == ["a"]
    assert "bad checksum" in told["rest of a broken tar"][0]


@pytest.mark.parametrize(
    ("content", "why", "words"),
    [
        (b"", keys.NO_TAR, "nothing (the file is empty)"),
        (bytes(10_240), "tar without pictures and captions", "nothing in it"),
        (b"<!DOCTYPE html><html>" + b" " * 600, keys.NO_TAR, "an HTML page ("),
        (b"PK\3\4" + bytes(600), keys.NO_TAR, "a ZIP archive ("),
        (noise() + bytes(600), keys.NO_TAR, "JPEG ("),
        (gzip.compress(b"a,b" * 400, mtime=0), keys.NO_TAR, "packed with gzip ("),
        (b"\x1f\x8b\x08", "rest of a broken tar", "Compressed file ended before"),
        (member("a.mp4", b"film") + bytes(1024), "tar without pictures and captions",
         "1 files, such as a.mp4"),
        (member("a.jpg", size=1 << 60), "rest of a broken tar", "1,152,921,504,606,846,976 bytes"),
        (member("a.jpg", size=-1024), "rest of a broken tar",
         "after 0 bytes: a member of -1,024 bytes"),
        (member("x", size=1 << 50, type=tarfile.XHDTYPE), keys.NO_TAR,
         "a name or attributes of 1,125,899,906,842,624 bytes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_with_nothing_to_read_is_named_at_once(tmp_path, content, why, words, pack):
    path = tmp_path / "a.tar"
    path.write_bytes(pack(content))
    found, told = read(path)
    assert found == {}
    if pack is bytes:
        assert list(told) == [why]
        assert words in told[why][0]
    else:
        assert told


def test_links_lead_to_files_of_the_tar_and_never_out_of_it(tmp_path):
    path = tmp_path / "a.tar"
    secret = tmp_path / "secret.txt"
    secret.write_text("never read")

    def link(name, target, kind=tarfile.SYMTYPE):
        return member(name, type=kind, linkname=target)

    path.write_bytes(
        member("./in/a.jpg", noise(1))
        + link("b.jpg", "./in/a.jpg", tarfile.LNKTYPE)
        + member("b.txt", b"hard")
        + link("in/c.jpg", "../store/0")  # comes later, has no suffix, is a link itself
        + member("in/c.txt", b"soft")
        + link("store/0", "1")
        + member("in/a.txt", b"itself")
        + member("store/1", noise(2))
        + member("out.jpg", noise(3))
        + link("out.txt", str(secret))
        + member("up.jpg", noise(3))
        + link("up.txt", "../secret.txt")
        + link("x.jpg", "y.jpg")
        + link("y.jpg", "x.jpg")
        + member("x.txt", b"round and round")
        + bytes(1024)
    )
    found, told = read(path)
    captions = {key: (record.image, record.fields["caption"]) for key, record in found.items()}
    assert captions == {
        "in/a": (noise(1), "itself"), "b": (noise(1), "hard"), "in/c": (noise(2), "soft")
    }  # fmt: skip
    assert told == {
        keys.LINK: [
            f"a.tar: out (txt -> {secret})", "a.tar: up (txt -> ../secret.txt)",
            "a.tar: x (image -> y.jpg)", "a.tar: y (image -> x.jpg)",
        ]
    }  # fmt: skip
    plain = path.read_bytes()
    for packed in (gzip.compress(plain), pa.compress(plain, "zstd", asbytes=True)):
        path.write_bytes(packed)
        found, told = read(path)
        assert list(found) == ["in/a"]
        assert keys.PACKED in told


def test_files_far_behind_are_late_and_second_ones_doubled(tmp_path):
    path = tmp_path / "a.tar"
    between = list(pairs(range(WINDOW + 1)))
    late = [("a.jpg", noise()), ("a.txt", "x"), *between, ("a.json", "{}"), ("0000.txt", "again")]
    write_tar(path, late)
    _, told = read(path)
    assert told == {keys.LATE: ["a.tar: a"], "duplicate key": ["a.tar: 0000"]}


def test_a_packed_tar_holds_few_bytes_however_far_apart_its_files_are(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "HELD", 3 * len(noise()))
    path = tmp_path / "a.tar"
    apart = sorted(pairs(range(10)), key=lambda file: file[0].endswith("txt"))
    write_tar(path, apart)
    path.write_bytes(gzip.compress(path.read_bytes()))
    found, told = read(path)
    assert 2 <= len(found) <= 4
    assert list(told) == [keys.FAR]


def test_pictures_far_apart_without_captions_are_said_to_lack_them(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [*((f"{n:04}.jpg", noise(n)) for n in range(WINDOW + 6)), *pairs([9000])])
    path.write_bytes(gzip.compress(path.read_bytes()))
    found, told = read(path)
    assert list(found) == ["9000"]
    assert list(told) == ["image without caption"]


def test_a_sparse_file_is_named_and_the_next_pair_is_read(tmp_path):
    about = {"GNU.sparse.map": "0,1,9,1", "GNU.sparse.size": "10"}
    info = tarfile.TarInfo("sparse.jpg")
    info.size, info.pax_headers = 2, about
    sparse = info.tobuf(tarfile.PAX_FORMAT) + b"ab" + bytes(510)
    path = tmp_path / "a.tar"
    write_tar(path, [("sparse.txt", "x"), *pairs([1])])
    path.write_bytes(sparse + path.read_bytes())
    found, told = read(path)
    assert list(found) == ["0001"]
    assert told["sparse file in a tar"] == ["a.tar: sparse.jpg"]
