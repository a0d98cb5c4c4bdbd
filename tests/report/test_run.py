"""The report of a run: whole, legible and harmless, whatever the run has written or lost."""

import io
import json
import re

import browser
import pytest
import rich.console
import written

from otter_jax.errors import UserError
from otter_jax.report import run as report


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return written.pairs(tmp_path_factory.mktemp("home"))


def page_of(workdir):
    return report.write([workdir]).read_text("utf-8")


def test_the_report_is_one_file_that_fetches_and_runs_nothing(tmp_path, sets):
    html = page_of(written.run(tmp_path / "run", written.config_of(sets)))
    assert html == (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:" in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<script" not in html
    assert len(html) < 1 << 20


def test_it_shows_hits_losses_and_what_the_teacher_matches_at_both_ends(tmp_path, sets):
    html = page_of(written.run(tmp_path / "run", written.config_of(sets)))
    for words in (
        "Zero-shot recognition after step 4", "animals: 16 pictures, 8 classes",
        "FH@1 over the steps", "FH@10 over the steps", "chance 2 ln B", "Row error",
        "Step 0, before the first step", "Step 4</h3>", "Learning rate", "otter-jax train",
    ):  # fmt: skip
        assert words in html, words
    assert "Own mass" not in html  # it is 0 throughout
    assert html.count("<img ") == 2 * 12 + 16
    for words in ("Predictions on animals", "Best classes", "Commonest confusions", " ✓</bdi>"):
        assert words in html, words


def test_captions_and_names_are_shown_and_never_become_part_of_the_page(tmp_path, sets):
    config = written.config_of(sets)
    names = ("<b>bold</b>", 'a"b')
    html = page_of(written.run(tmp_path / "<i>run", config, sets=names))
    assert "<b>bold" not in html
    assert "<i>run" not in html
    assert 'a"b' not in html
    assert html.count("&lt;b&gt;bold&lt;/b&gt;: 16 pictures") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; ✓</bdi>" in html
    shown = set(re.findall(r'<span dir="auto">(.*?)</span>', html, re.DOTALL))
    assert {"&lt;script&gt;alert(1)&lt;/script&gt;", "שלום עולם", "x" * 120} & shown
    assert all("<" not in text for text in shown)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ([], "The log, metrics.jsonl, is empty."),
        (["{", "[1]", '{"loss": 1}', json.dumps(written.numbers(3)), '{"st'], "4 of 5 lines"),
        (['{"step": 2, "loss": NaN, "pairs": Infinity}'], "holds no numbers of training"),
        (['{"step": "x", "loss": 1}', '{"step": 1e999}'], "2 of 2 lines"),
    ],
)
def test_a_damaged_log_is_told_and_the_rest_is_drawn(tmp_path, sets, log, words):
    html = page_of(written.run(tmp_path / "run", written.config_of(sets), log=log))
    assert words in html
    assert "animals: 16 pictures" in html


def test_a_run_without_evaluations_names_the_command_that_makes_one(tmp_path, sets):
    html = page_of(written.run(tmp_path / "run", written.config_of(sets), sets=()))
    assert f"There is no evaluation yet. This makes one: eval --workdir {tmp_path}/run" in html


def test_one_step_is_drawn_as_points_and_its_hits_over_k(tmp_path, sets):
    html = page_of(written.run(tmp_path / "run", written.config_of(sets), steps=(1,)))
    assert "Hits among the K best classes" in html
    assert "<title>loss 1: 8</title>" in html


def test_a_run_that_was_stopped_says_what_is_left(tmp_path, sets):
    log = [json.dumps(written.numbers(2, seconds_left=75.0))]
    html = page_of(written.run(tmp_path / "run", written.config_of(sets), steps=(2,), log=log))
    assert "not at its end: 1m15s of training left" in html


def test_a_method_without_a_teacher_shows_what_otters_would_see(tmp_path, sets):
    config = written.config_of(sets, "infonce")
    log = [json.dumps({"step": 2, "loss": 3.0, "pairs": 3.0, "scale_pairs": 49.0})]
    html = page_of(written.run(tmp_path / "run", config, log=log))
    assert "The method infonce has no teacher; here is what OTTER&#x27;s would see" in html
    assert "Entropy of a target" not in html


def test_a_run_that_trusts_shows_in_whom(tmp_path, sets):
    log = [json.dumps(written.numbers(2, trust=0.4, distrusted=0.25))]
    html = page_of(written.run(tmp_path / "run", written.config_of(sets, "trust"), log=log))
    assert "The method trust has no targets of a teacher; here is what OTTER&#x27;s" in html
    assert "Trust in the given pairs" in html
    shown = re.findall(r'title="trust in the given pair: ([01]\.\d\d)"', html)
    assert 0 <= float(min(shown)) < float(max(shown)) <= 1


def test_a_fixed_teacher_is_drawn_once(tmp_path, sets):
    config = written.config_of(sets)
    config.teacher.checkpoint = "runs/teacher"
    html = page_of(written.run(tmp_path / "run", config))
    assert "The teacher is fixed" in html
    assert html.count('class="match"') == 1


def test_runs_of_older_versions_are_drawn_as_far_as_they_go(tmp_path, sets):
    log = [json.dumps({"step": 2, "loss": 3.0, "entropy": 2.5})]
    workdir = written.run(tmp_path / "run", written.config_of(sets), log=log, keep=())
    config = json.loads((workdir / "config.json").read_text())
    del config["gates"], config["data"]["exif"]
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "run.json").unlink()
    html = page_of(workdir)
    assert "Entropy of a target" in html
    assert "There is no run.json" in html
    assert "Nothing is kept of it: an older version of the program trained this run" in html


def test_pictures_of_a_set_that_is_gone_or_another_are_blank_and_that_is_told(tmp_path):
    config = written.config_of(written.pairs(tmp_path))
    workdir = written.run(tmp_path / "run", config)
    (tmp_path / "other").mkdir()
    config.data.dir = str(written.pairs(tmp_path / "other", written.CAPTIONS[::-1]))
    (workdir / "config.json").write_text(config.to_json())
    assert "was made anew since the run" in page_of(workdir)
    config.data.dir = str(tmp_path / "none")
    (workdir / "config.json").write_text(config.to_json())
    html = page_of(workdir)
    assert "No pictures of pairs: There is no data set pairs in" in html
    assert "<img" not in html
    assert html.count('class="blank"') == 2 * 12 + 16


@pytest.mark.parametrize("damage", [b"PK", b"PK\3\4", b""])
def test_damaged_embeddings_and_results_are_told(tmp_path, sets, damage):
    workdir = written.run(tmp_path / "run", written.config_of(sets))
    (workdir / "watched" / "step_00000000.npz").write_bytes(damage)
    (workdir / "results" / "step_00000002.json").write_text("{")
    html = page_of(workdir)
    assert "watched/step_00000000.npz is damaged" in html
    assert "results/step_00000002.json is damaged" in html
    assert html.count('class="match"') == 1


def test_a_transfer_is_said_to_have_a_report_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text('{"phases": "a"}')
    with pytest.raises(UserError, match=r"a run of transfer, which writes its own report"):
        report.write([tmp_path])
    with pytest.raises(UserError, match=r"is .*none the directory of a run\?"):
        report.write([tmp_path / "none"])


def test_a_config_without_what_a_report_needs_is_damaged(tmp_path, sets):
    workdir = written.run(tmp_path / "run", written.config_of(sets))
    config = json.loads((workdir / "config.json").read_text())
    for section in ("objective", "teacher", "train"):
        (workdir / "config.json").write_text(json.dumps(config | {section: 3}))
        with pytest.raises(UserError, match=rf"config.json is damaged: it has no .*{section}\."):
            report.write([workdir])


def test_a_place_that_cannot_be_written_to_is_told_and_nothing_is_left_there(tmp_path, sets):
    workdir = written.run(tmp_path / "run", written.config_of(sets))
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "none" / "a.html", tmp_path / "folder"):
        with pytest.raises(UserError, match=r"cannot be written to .* Give another --out FILE"):
            report.write([workdir], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run"]


def test_several_runs_share_plots_and_tables_and_what_differs_is_told(tmp_path, sets):
    config = written.config_of(sets)
    first = written.run(tmp_path / "a" / "run", config)
    config.optim.learning_rate = 0.25
    second = written.run(tmp_path / "b" / "run", config)
    out = report.write([first, second])
    assert out == tmp_path / "report.html"
    html = out.read_text("utf-8")
    assert html.count("a/run") >= 3  # legend, table, what differs
    assert '<td dir="auto">optim.learning_rate</td>' in html
    assert '<td dir="auto">0.25</td>' in html
    assert 'class="line c1 dash0"' in html
    assert html.count('aria-label="Loss and its terms, nats"') == 1
    with pytest.raises(UserError, match="given twice"):
        report.write([first, first])


def test_what_hinders_the_report_of_an_ended_run_is_one_line(tmp_path):
    console = rich.console.Console(file=io.StringIO(), width=1000)
    report.write_at_end(tmp_path / "none", console)
    said = console.file.getvalue()
    assert said.startswith("The report could not be drawn (UserError: There is no ")
    assert said.count("\n") == 1


@pytest.mark.skipif(browser.program() is None, reason=browser.MISSING)
def test_in_a_browser_all_is_shown_at_both_widths_and_nothing_complains(tmp_path, sets):
    config = written.config_of(sets)
    first = written.run(tmp_path / "one", config, sets=("animals", "y" * 80))
    pages = [report.write([first])]
    config.seed = 1
    pages.append(report.write([first, written.run(tmp_path / ("two" * 20), config)]))
    with browser.opened() as page:
        for html in pages:
            for width in (400, 1400):
                for dark in (False, True):
                    page.open(html, width, dark)
                    assert page.value("document.documentElement.scrollWidth") == width
                    images = "[...document.images].map(image => image.naturalWidth)"
                    assert all(page.value(images))
        page.open(pages[0], 400)
        assert len(page.value(images)) == 2 * 12 + 2 * 16
        assert page.value("document.querySelector('script')") is None
        box = "document.querySelector('.match .caption').getBoundingClientRect().right"
        assert page.value(box) <= 400
        assert page.complaints == []
