"""The papers' sets, from small files laid out as theirs."""

import base64
import csv
import gzip
import zlib

import pytest
from pictures import noise

from otter_jax.data.build.plan import Options
from otter_jax.data.build.report import read_report
from otter_jax.data.ensure import make, plan_of
from otter_jax.data.public import imagenet, layouts, open_images, wit, yfcc15m
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError


def made(root, layout, split):
    """The records of a set by key, its source, and its report."""
    plan = plan_of([str(root)], layout, Options(), layout=layout)
    home = make(plan, str(root / "sets"))
    source = open_dataset(str(root / "sets"), layout, split)
    report = read_report(home)[split]
    return {source[i]["key"]: source[i] for i in range(len(source))}, source, report


def dropped(report):
    return {why: entry["count"] for why, entry in report["dropped"].items()}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def named(source, record):
    names = source.classes("labels")
    return [names[number] for number in record["labels"]]


@pytest.mark.parametrize("order", ["file first", "file last"])
def test_cc3m_joins_captions_and_the_downloaders_report(tmp_path, order):
    urls = [f"http://there/{n}.jpg?a=b" for n in range(6)]
    captions = [f"a caption of {n}" for n in range(5)] + ['he said "no" twice']
    rows = zip(captions, urls, strict=True)
    write(tmp_path / "Train_GCC-training.tsv", "".join(f"{c}\t{u}\n" for c, u in rows))
    lines = []
    for n in (5, 3, 1, 0, 2):  # 4 was not downloaded
        file = f"training/{zlib.crc32(urls[n].encode())}"
        if n != 2:  # what the report says, but is not there
            write(tmp_path / file, noise(n) if n != 3 else b"<html>")
        row = [file, "training", "image/jpeg", "1234", "200", urls[n]]
        if order == "file last":
            row = [captions[n], urls[n], "training", "200", file]
        lines.append("\t".join(row))
    lines.append("\t".join(["", "training", "", "", "404", urls[4]]))
    write(tmp_path / "downloaded_training_report.tsv", "\n".join(lines) + "\n")
    kept, _, report = made(tmp_path, "cc3m", "train")
    assert {row["caption"]: row["image"] for row in kept.values()} == {
        captions[n]: noise(n) for n in (0, 1, 5)
    }
    assert dropped(report) == {
        "image not downloaded": 1, "missing file": 1, "unreadable image": 1
    }  # fmt: skip


def test_wit_takes_the_english_texts_in_their_order(tmp_path):
    columns = [
        "language", "page_url", "image_url", "page_title", "section_title",
        "hierarchical_section_title", "caption_reference_description",
        "caption_attribution_description", "caption_alt_text_description", "mime_type",
        "original_height", "original_width", "is_main_image", "attribution_passes_lang_id",
        "page_changed_recently", "context_page_description", "context_section_description",
    ]  # fmt: skip
    texts = [
        ("en", 0, "reference", "attribution", "alt"),
        ("de", 1, "Bezug", "", ""),
        ("en", 2, "", "attribution", "alt"),
        ("en", 3, "", "attribution", ""),
        ("en", 4, "", "", ""),
        ("en", 0, "a second page", "", ""),
    ]
    rows = []
    for language, n, reference, attribution, alt in texts:
        row = dict.fromkeys(columns, "") | {"language": language, "image_url": f"http://w/{n}.jpg"}
        row |= {"caption_reference_description": reference, "caption_alt_text_description": alt}
        rows.append("\t".join((row | {"caption_attribution_description": attribution}).values()))
    text = "\n".join(["\t".join(columns), *rows])
    write(tmp_path / "wit_v1.train.all-00000-of-00010.tsv.gz", gzip.compress(text.encode()))
    for part in range(2):
        lines = [
            f"http://w/{n}.jpg\t{base64.b64encode(noise(n)).decode()}\thttp://page"
            for n in range(part, 5, 2)
        ]
        lines.append("http://w/0.jpg\tno base64!\thttp://page")
        content = gzip.compress("\n".join(lines).encode())
        write(tmp_path / "image_pixels" / f"part-{part}.csv.gz", content)
    kept, _, report = made(tmp_path, "wit", "train")
    assert {key: row["caption"] for key, row in kept.items()} == {
        "0.jpg": "reference", "2.jpg": "alt", "3.jpg": "attribution"
    }  # fmt: skip
    assert kept["3.jpg"]["image"] == noise(3)
    assert dropped(report) == {"no caption in 'en'": 2, "row whose image is no base64": 2}
    further = report["changed"]["further text in 'en' of one image, left out"]
    assert further["count"] == 1
    assert "http://w/0.jpg" in further["first"][0]


WIT_HEADER = "language\timage_url\t" + "\t".join(wit.TEXTS)


def wit_of(root, text, urls):
    write(root / "wit_v1.train.all-1.tsv.gz", gzip.compress(text.encode()))
    rows = [f"{url}\t{base64.b64encode(noise(n)).decode()}\tpage" for n, url in enumerate(urls)]
    write(root / "image_pixels" / "part-0.csv.gz", gzip.compress("\n".join(rows).encode()))


def test_wit_without_an_english_text_for_any_image_says_why(tmp_path):
    wit_of(tmp_path, f"{WIT_HEADER}\nde\ta.jpg\tBezug\t\t\n", ["a.jpg", "b.jpg"])
    with pytest.raises(UserError, match="(?s)no caption in 'en': .*a.jpg.* row of text: .*b.jpg"):
        made(tmp_path, "wit", "train")


def test_of_a_broken_file_of_wits_texts_that_file_is_named_and_not_one_of_pixels(tmp_path):
    wit_of(tmp_path, f"{WIT_HEADER}\n" + "en\ta.jpg\ttext\t\t\n" * 99, ["a.jpg"])
    texts = tmp_path / "wit_v1.train.all-1.tsv.gz"
    texts.write_bytes(texts.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"wit_v1.train.all-1.tsv.gz cannot be read to its end"):
        made(tmp_path, "wit", "train")


def test_wit_is_read_after_a_byte_order_mark_and_without_columns_says_which(tmp_path):
    wit_of(tmp_path, f"\ufeff{WIT_HEADER}\nen\ta.jpg\ttext\t\t\n", ["a.jpg"])
    assert made(tmp_path, "wit", "train")[0]["a.jpg"]["caption"] == "text"
    wit_of(tmp_path, "lang\turl\n", ["a.jpg"])
    with pytest.raises(UserError, match="has no column caption_alt_text.*, image_url, language"):
        plan_of([str(tmp_path)], "x", Options(), layout="wit")


def test_yfcc15m_reads_the_photographs_of_the_subset(tmp_path, monkeypatch):
    monkeypatch.setattr(yfcc15m, "RANGE", 200)
    photos = []
    for n in range(10):
        sha = f"{n:03x}abc" + "0" * 20
        fields = [str(n), f"photo{n}", sha, "user", "nick", "2010", "2011", "camera"]
        fields += [f"Otter%20{n}+swims", "in+%3Cb%3Ethe%3C%2Fb%3E+sea", "tags"]
        photos.append("\t".join(fields + [""] * 14))
        if n % 2 == 0:
            write(tmp_path / "data" / "images" / sha[:3] / sha[3:6] / f"{sha}.jpg", noise(n))
    write(tmp_path / "yfcc100m_dataset", "\n".join([*photos, "cut"]))
    subset = [f"{n}\tphoto{n}\thash" for n in (0, 2, 5, 8)]
    write(tmp_path / "yfcc100m_subset_data.tsv", "\n".join(subset))
    kept, _, report = made(tmp_path, "yfcc15m", "train")
    assert {key: row["image"] for key, row in kept.items()} == {
        f"photo{n}": noise(n) for n in (0, 2, 8)
    }
    assert kept["photo8"]["caption"] == "Otter 8 swims. in the sea"
    assert dropped(report) == {
        "missing file": 1, "line of metadata that is none": 1, "photograph outside the subset": 6
    }  # fmt: skip


@pytest.mark.parametrize("subset", ["", "BZh91AY&SY\n", "photo0\t0\thash\n"])
def test_yfcc15m_with_a_list_of_no_photographs_is_an_error_at_once(tmp_path, subset):
    write(tmp_path / "yfcc100m_dataset", "0\tphoto0\n")
    write(tmp_path / "yfcc100m_subset_data.tsv", subset)
    with pytest.raises(UserError, match=r"yfcc100m_subset_data.tsv names no photograph: .*Get it"):
        plan_of([str(tmp_path)], "x", Options(), layout="yfcc15m")


def test_lists_are_read_after_a_byte_order_mark(tmp_path):
    write(tmp_path / "yfcc100m_subset_data.tsv", "\ufeff3\tphoto\thash\n")
    assert yfcc15m.read_subset(tmp_path / "yfcc100m_subset_data.tsv").nonzero()[0].tolist() == [3]
    write(tmp_path / "LOC_synset_mapping.txt", "\ufeffn01440764 tench\n")
    assert imagenet.read_mapping(tmp_path / "LOC_synset_mapping.txt") == {"n01440764": "tench"}


@pytest.mark.parametrize(
    ("title", "description", "caption"),
    [
        ("a+b%21", "", "a b!"),
        ("", "only+this", "only this"),
        ("A &amp; B", '%3Ca+href%3D"x"%3Elink%3C/a%3E', "A & B. link"),
        ("", "", ""),
    ],
)
def test_yfcc15m_captions(title, description, caption):
    assert yfcc15m.caption(title, description) == caption


def test_open_images_has_the_trainable_labels_that_people_saw(tmp_path):
    for n in range(4):
        write(tmp_path / "test" / f"image{n}.jpg", noise(n))
    rows = [
        ["ImageID", "Source", "LabelName", "Confidence"],
        ["image0", "verification", "/m/otter", "1"],
        ["image0", "verification", "/m/river", "1"],
        ["image0", "crowdsource-verification", "/m/otter", "1"],
        ["image1", "verification", "/m/otter", "0"],
        ["image2", "verification", "/m/rare", "1"],
        ["image3", "verification", "/m/sea", "1"],
        ["image9", "verification", "/m/sea", "1"],
    ]
    with open(tmp_path / "test-annotations-human-imagelabels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    names = (
        'LabelName,DisplayName\n/m/otter,Otter\n/m/river,River\n/m/rare,Rare\n/m/sea,"Sea, sea"\n'
    )
    write(tmp_path / "oidv6-class-descriptions.csv", names)
    write(tmp_path / "oidv6-classes-trainable.txt", "/m/otter\n/m/river\n/m/sea\n")
    kept, source, report = made(tmp_path, "open_images", "test")
    assert source.classes("labels") == ["Otter", "River", "Sea, sea"]
    assert {key: named(source, row) for key, row in kept.items()} == {
        "test/image0.jpg": ["Otter", "River"],
        "test/image3.jpg": ["Sea, sea"],
    }
    without = "picture without a label among the classes"
    assert dropped(report) == {"missing file": 1, without: 2}


HIERARCHY = """category_index\tcategory_id\tindex_of_parent_category\tcategory name
0\tn00002452\t-1  thing
1\tn00000001\t0\tanimal, beast
2\tn00000002\t1\totter
3\tn00000003\t1\tsea otter, Enhydra lutris
"""


@pytest.mark.parametrize("form", ["{}", "{}:1"])
def test_imagenet10k_has_ancestors_in_one_bank_and_leaves_alone_in_the_other(tmp_path, form):
    lists = {"n00000002/n00000002_7.JPEG": (2, 1, 0), "n00000001/n00000001_1.JPEG": (1, 0)}
    for path in lists:
        write(tmp_path / "images" / path.split("/")[1], noise(len(path)))
    lines = ("\t".join([p, *map(form.format, n)]) for p, n in lists.items())
    write(tmp_path / "val_image_id_from_imagenet.txt", "\n".join(lines))
    write(tmp_path / "dictionary_and_semantic_hierarchy.txt", HIERARCHY)
    kept, source, _ = made(tmp_path, "imagenet10k", "validation")
    bank = ["thing", "animal,or beast", "otter", "sea otter,or Enhydra lutris"]
    assert source.classes("labels") == bank
    assert named(source, kept["images/n00000002_7.JPEG"]) == ["otter", "animal,or beast", "thing"]
    kept, source, _ = made(tmp_path, "imagenet10k_leaves", "validation")
    assert source.classes("labels") == bank[2:]
    assert {key: named(source, row) for key, row in kept.items()} == {
        "images/n00000002_7.JPEG": ["otter"]
    }


def test_imagenet1k_and_22k_share_the_names_they_have_in_common(tmp_path):
    write(tmp_path / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02012849 crane\n")
    write(tmp_path / "val" / "n01440764" / "ILSVRC2012_val_1.JPEG", noise(1))
    write(tmp_path / "val" / "n02012849" / "ILSVRC2012_val_2.JPEG", noise(2))
    write(tmp_path / "train" / "n02012849" / "n02012849_1.JPEG", noise(3))
    kept, source, _ = made(tmp_path, "imagenet1k", "validation")
    assert source.classes("labels") == ["tench,or Tinca tinca", "crane"]
    key = "val/n01440764/ILSVRC2012_val_1.JPEG"
    assert named(source, kept[key]) == ["tench,or Tinca tinca"]
    assert len(open_dataset(str(tmp_path / "sets"), "imagenet1k", "train")) == 1

    write(tmp_path / "imagenet21k_wordnet_ids.txt", "n00004475\nn02012849\n")
    write(tmp_path / "imagenet21k_wordnet_lemmas.txt", "organism, living_thing\ncrane\n")
    write(tmp_path / "images" / "n00004475_32.JPEG", noise(4))
    write(tmp_path / "images" / "n02012849" / "n02012849_9.JPEG", noise(5))
    write(tmp_path / "images" / "n09999999_9.JPEG", noise(6))  # of no class
    kept, source, report = made(tmp_path, "imagenet22k", "validation")
    assert dropped(report) == {"picture without a label among the classes": 1}
    names = ["organism,or living thing", "crane", "tench,or Tinca tinca"]
    assert source.classes("labels") == names
    assert sorted(named(source, row)[0] for row in kept.values()) == sorted([*names, "crane"])


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_what_is_missing_is_said_with_where_to_get_it(tmp_path, layout):
    with pytest.raises(UserError, match=r"There is no .* Get it as the docstring of"):
        plan_of([str(tmp_path)], "x", Options(), layout=layout)


def test_lists_that_are_laid_out_otherwise_are_mistakes_not_tracebacks(tmp_path):
    for name in ("LABELS", "NAMES", "TRAINABLE"):
        write(tmp_path / vars(open_images)[name][0], "a,b\n1,2\n")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no name for 2 of the trainable classes, such as a,b"):
        plan_of([str(tmp_path)], "x", Options(), layout="open_images")
    write(tmp_path / "oidv6-classes-trainable.txt", "1\n")
    with pytest.raises(UserError, match="not laid out as open_images has it: KeyError 'LabelName'"):
        plan_of([str(tmp_path)], "x", Options(), layout="open_images")
    write(tmp_path / open_images.LABELS[0], "ImageID,Source,LabelName,Confidence\n")
    with pytest.raises(UserError, match="would have no pictures in test"):
        made(tmp_path, "open_images", "test")


def test_a_layout_takes_one_folder(tmp_path):
    with pytest.raises(UserError, match="one of cc3m, wit"):
        plan_of([str(tmp_path)], "x", Options(), layout="coco")
    with pytest.raises(UserError, match="takes one folder"):
        plan_of([str(tmp_path / "no")], "x", Options(), layout="cc3m")
