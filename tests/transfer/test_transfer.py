"""Transfer as its user meets it: phases, runs, stops, what a run leaves, and every mistake."""

import functools
import io
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from flax import traverse_util
from PIL import Image
from squares import COLOURS, TINY, make_config, run, write

from otter_jax import gates
from otter_jax.commands import export as command
from otter_jax.configs import transfer as configs
from otter_jax.errors import UserError
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.vit import ViT
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.training import compiling
from otter_jax.transfer import export, network, phases, pruning, task
from otter_jax.transfer.step import create_state, transfer_step
from otter_jax.weights import encoders, folders


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write(tmp_path_factory.mktemp("squares") / "tree")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A network that compiles in seconds, under a name of its own."""
    monkeypatch.setitem(encoders.IMAGE_ENCODERS, "tiny", TINY)


@pytest.fixture
def config(squares):
    return make_config(squares)


@pytest.fixture(scope="module")
def finished(squares, tmp_path_factory):
    """The directory of a finished run, its config, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.IMAGE_ENCODERS, "tiny", TINY)
        made, workdir = make_config(squares), tmp_path_factory.mktemp("runs") / "whole"
        return workdir, made, run(made, workdir)


def quiet():
    return rich.console.Console(file=io.StringIO())


def final(config, workdir):
    _, params, batch_stats, step = network.trained(config, workdir, len(COLOURS))
    return {"params": params, "batch_stats": batch_stats, "step": step}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("FFaaab", ["f", "f", "a", "a", "a", "b"]),
        ("f[fb]w", ["f", "bf", "w"]),
        ("[fbw][FB]", ["bfw", "bf"]),
        ("[aa]", ["a"]),
    ],
)
def test_phases_are_letters_and_brackets(text, parsed):
    assert phases.parse(text) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FFx", "no group 'x' (character 3)"),
        ("F a", "no group ' ' (character 2)"),
        ("F[ab", "no group '['"),
        ("F[]", "no group '['"),
        ("", "trains nothing"),
    ],
)
def test_a_phase_that_does_not_exist_is_named_with_those_that_do(text, words):
    with pytest.raises(UserError) as caught:
        phases.parse(text)
    assert words in str(caught.value)
    assert "f the classifier; a the gates" in str(caught.value)


@pytest.mark.parametrize("variant", ["filter", "slice", "norm", "classifier", "full", "scratch"])
def test_every_variant_is_a_config_of_twelve_epochs(variant):
    config = configs.get_config(variant)
    task.check_config(config, devices=1)
    assert len(phases.parse(config.phases)) == 12


def batch():
    images = np.random.RandomState(0).randint(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    return {"image": images, "label": np.arange(8, dtype=np.int32) % 3}


def stepper(model, groups, stored_statistics=False):
    return functools.partial(
        transfer_step,
        model=model,
        groups=groups,
        learning_rate=lambda _: 1e-3,
        normalise=lambda image: image.astype(jnp.float32) / 128 - 1,
        gate_penalty="l2",
        gate_strength=0.1,
        stored_statistics=stored_statistics,
    )


@functools.cache
def one_step(groups, stored_statistics=False):
    """(network, state before, state after, metrics): a step of one with every kind of layer."""
    model = EfficientNet(stages=((1, 8, 1, 3, 1), (1, 12, 4, 3, 2)), num_classes=3)
    init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
    variables = init()
    params = variables["params"] | {"gates": gates.create(variables["params"], "slice")}
    state = create_state(params, variables["batch_stats"], ["f", groups], model)
    return model, state, *jax.jit(stepper(model, groups, stored_statistics))(state, batch())


@pytest.mark.parametrize("groups", ["f", "a", "b", "w", "bf"])
def test_a_phase_trains_its_groups_and_nothing_else(groups):
    model, before, after, _ = one_step(groups)
    for group in phases.GROUPS:
        was, now = (phases.select(s.params, group, model) for s in (before, after))
        assert jax.tree.leaves(was)
        moved = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (was, now)), strict=True)]
        assert all(moved) if group in groups else not any(moved), group


def test_the_groups_are_all_there_is_and_overlap_nowhere():
    model, state, _, _ = one_step("f")
    parts = [traverse_util.flatten_dict(phases.select(state.params, g, model)) for g in "fabw"]
    together = [path for part in parts for path in part]
    assert sorted(together) == sorted(traverse_util.flatten_dict(state.params))


def test_batch_norms_adapt_unless_their_statistics_are_to_stay():
    for stored in (False, True):
        _, before, after, _ = one_step("f", stored)
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()), before.batch_stats, after.batch_stats
        )
        assert all(jax.tree.leaves(same)) if stored else not any(jax.tree.leaves(same))


def test_the_penalty_is_in_the_loss_of_every_phase():
    model, _, state, metrics = one_step("a")
    assert metrics["loss"] == pytest.approx(metrics["cross_entropy"])  # with gates of 1
    params = state.params
    expected = gates.penalty(params["gates"], "l2")
    assert expected < 0
    for groups in ("f", "a"):
        start = create_state(params, state.batch_stats, [groups], model)
        _, metrics = jax.jit(stepper(model, groups))(start, batch())
        assert metrics["gate_penalty"] == pytest.approx(float(expected), rel=1e-4)
        assert metrics["loss"] == pytest.approx(
            float(metrics["cross_entropy"] + 0.1 * metrics["gate_penalty"]), rel=1e-5
        )


def test_a_run_says_what_it_does_and_leaves_everything_behind(finished):
    workdir, _, printed = finished
    assert "a the gates (filter attention): " in printed
    assert "squares:train, 36 images, 3 classes" in printed
    assert "always the commonest class: top-1 0.333" in printed
    assert "epoch 4/4 (a) | validation top-1 " in printed
    assert "step 18/18 epoch 4.0 (a) | loss " in printed
    results = [json.loads(p.read_text()) for p in sorted((workdir / "results").glob("*.json"))]
    assert [r["phase"] for r in results] == ["f", "a", "bf", "a"]
    assert results[-1]["top-1"] <= results[-1]["top-3"] == 1
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r for r in lines if "loss" in r][-1]["accuracy"] > 0.5  # chance is 0.33
    assert {"loss", "accuracy", "images_per_second", "learning_rate"} <= lines[0].keys()
    assert json.loads((workdir / "config.json").read_text())["phases"] == "Fa[bf]a"


def test_the_report_has_the_ranking_the_pictures_and_the_pruning(finished):
    workdir, _, _ = finished
    page = (workdir / "report.html").read_text()
    for number in range(4):
        assert f'src="report/{number}.png"' in page
        with Image.open(workdir / "report" / f"{number}.png") as plot:
            assert plot.width > 500
    ranking = json.loads((workdir / "filters.json").read_text())
    for layer, ranked in ranking.items():
        assert f">{layer}</td>" in page
        for end in (0, -1):
            assert f"{ranked['filters'][end]} ({ranked['attention'][end]:.3f})" in page
    assert sorted(ranking["conv1"]["filters"]) == list(range(64))
    assert ranking["conv1"]["attention"] == sorted(ranking["conv1"]["attention"], reverse=True)
    points = json.loads((workdir / "pruning.json").read_text())
    assert points[0]["share"] == 0
    assert (
        points[0]["top-1"]
        == points[0]["random"]
        == points[0]["magnitude"]
        == json.loads(sorted((workdir / "results").glob("*.json"))[-1].read_text())["top-1"]
    )
    sizes = [point["values"] for point in points]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert all(point["speed"] > 0 for point in points)


@pytest.mark.parametrize("stopped_at", [3, 9, 18])
def test_a_stopped_run_goes_on_to_the_same_numbers(
    finished, config, tmp_path, monkeypatch, stopped_at
):
    at_the_end = config.report = stopped_at == 18  # in its validation
    config.train.log_every, config.eval.best = 3, "top-1"
    say = task.Transfer.line

    def stop(self, now, recorded):
        if now == stopped_at:
            signal.raise_signal(signal.SIGTERM)
        return say(self, now, recorded)

    with monkeypatch.context() as patch:
        patch.setattr(task.Transfer, "line", stop)
        first = run(config, tmp_path / "run")
    assert f"Stopped by SIGTERM after step {stopped_at} of 18; saved" in first
    assert not (tmp_path / "run" / "report.html").exists()
    second = run(config, tmp_path / "run")
    assert at_the_end == ("The report is in " in second)
    assert at_the_end or f"going on from step {stopped_at}" in second
    assert "Done already: 18 of 18 steps" in run(config, tmp_path / "run")
    reader = Checkpoints(tmp_path / "run", best="top-1")
    assert reader.is_rated(18)
    reader.close()
    config.eval.best = ""  # the last
    whole, again = final(finished[1], finished[0]), final(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_an_exported_network_computes_what_the_gated_one_does(finished, tmp_path):
    workdir, config, _ = finished
    out = tmp_path / "out"
    assert command.main(["--workdir", str(workdir), "--out", str(out)]) == 0
    folder = out / "network"
    model, params, batch_stats, _ = network.trained(config, workdir, 3)
    assert any((gate != 1).any() for gate in jax.tree.leaves(params["gates"]))
    read = encoders.load_image(str(folder / "model.safetensors"), arch="tiny", classifier=True)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    gated = model.apply(
        {"params": gates.fold(params), "batch_stats": batch_stats}, images, train=False
    )
    np.testing.assert_allclose(
        read.module.apply(read.variables, images, train=False), gated, atol=1e-6
    )
    about = json.loads((folder / "config.json").read_text())
    assert about["label_names"] == sorted(COLOURS)
    assert about["num_classes"] == 3
    with pytest.raises(UserError, match="is there already"):
        export.export(config, workdir, out, share=0.0, console=quiet())


def test_a_pruned_export_is_smaller_and_computes_the_same(finished, tmp_path):
    workdir, config, _ = finished
    printed = io.StringIO()
    console = rich.console.Console(file=printed, width=200)
    whole, smaller = export.export(config, workdir, tmp_path / "out", share=0.5, console=console)
    points = {p["share"]: p for p in json.loads((workdir / "pruning.json").read_text())}
    before, after = (points[share]["top-1"] for share in (0.0, 0.5))
    assert f"validation top-1 {before:.3f} before, {after:.3f} after" in printed.getvalue()
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    for folder in (whole, smaller):  # "tiny" is no name of timm's, so it is not compared
        about = folder / "config.json"
        about.write_text(about.read_text().replace('"architecture"', '"was"'))
    read = [
        encoders.load_image(str(folder), arch="tiny", classifier=True)
        for folder in (whole, smaller)
    ]
    one, other = (r.module.apply(r.variables, images, train=False) for r in read)
    model, params, batch_stats, _ = network.trained(config, workdir, 3)
    keep = pruning.lowest(network.attention_of(params), 0.5, model, params)
    variables = {"params": gates.fold(params), "batch_stats": batch_stats}
    masked = model.apply(pruning.mask(variables, keep, model), images, train=False)
    np.testing.assert_allclose(one, masked, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other, masked, rtol=1e-5, atol=1e-6)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, smaller)]
    assert sizes[1] < sizes[0]
    assert folders.kept(read[1].module)


def test_without_gates_filters_are_pruned_by_magnitude_alone(finished, tmp_path, monkeypatch):
    workdir, config, _ = finished
    model, params, batch_stats, step = network.trained(config, workdir, 3)
    bare = network.Network(model, gates.fold(params), batch_stats, step)
    monkeypatch.setattr(export, "trained", lambda *_, **__: bare)
    with pytest.raises(UserError, match="this network has none; --by magnitude"):
        export.export(config, workdir, tmp_path / "out", share=0.3, console=quiet())
    folders = export.export(
        config, workdir, tmp_path / "out", share=0.7, by="magnitude", console=quiet()
    )
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    assert sizes[1] < sizes[0]


def test_what_was_pruned_can_be_transferred_again(finished, config, tmp_path):
    workdir, made, _ = finished
    _, smaller = export.export(made, workdir, tmp_path / "out", share=0.5, console=quiet())
    config.model.weights = str(smaller)
    about = smaller / "config.json"  # "tiny" is no name of timm's, so it is not compared
    about.write_text(about.read_text().replace('"architecture"', '"was"'))
    module, params, *_ = network.fresh(config, 3)
    widths = {
        block: (layers["conv1"]["kernel"].shape[-1],)
        for block, layers in params.items()
        if block.startswith("layer")
    }
    assert dict(folders.kept(module)) == widths


MISTAKES = [
    ({"phases": "FFz"}, "no group 'z'"),
    ({"gates.shape": ""}, "gates.penalty='l2', but gates.shape is empty"),
    ({"gates.shape": "", "gates.penalty": ""}, "train the gates (a), but gates.shape is empty"),
    ({"phases": "ff"}, "never train the gates (a)"),
    ({"gates.shape": "channel"}, "gates.shape='channel'"),
    ({"data.name": ""}, "data.name is missing"),
    ({"data.train": "test"}, "has no split 'test'"),
    ({"data.label": "species"}, "data.label='species' is not a feature"),
    (
        {"data.label": "key"},
        "data.label='key' is not a feature of squares",
    ),
    ({"data.validation": "validation[:2]"}, "has no picture of "),
    ({"data.train": "train[:2]"}, "data.train='train[:2]' has no picture of "),
    ({"data.validation": "test"}, "to divide one: --config.data.train='train[20%:]'"),
    (
        {"data.validation": "train[70%:]"},
        "11 of the 11 pictures of data.validation='train[70%:]' are in data.train='train', too",
    ),
    ({"train.stored_statistics": True}, "model.weights is empty, so that the batch norms have no"),
    ({"train.batch_size": 64}, "train.batch_size=64 is more than the 36 pictures"),
    ({"train.log_every": 0}, "train.log_every=0"),
    ({"optim.schedule": "step"}, "optim.schedule='step'"),
    ({"eval.best": "top-5"}, "eval.best='top-5'"),
    ({"model.arch": "tinny"}, "did you mean 'tiny'"),
    ({"model.ema": True}, "model.ema is for the weights of a run"),
    ({"model.dtype": "half"}, "model.dtype='half'"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=lambda x: str(x)[:40])
def test_a_mistake_is_one_paragraph_before_anything_is_compiled(config, tmp_path, changes, words):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_group_without_parameters_is_refused(config, monkeypatch, tmp_path):
    tiny_vit = (ViT, {"width": 16, "depth": 1, "heads": 2, "patch": 16, "image_size": 32})
    monkeypatch.setitem(encoders.IMAGE_ENCODERS, "tiny", tiny_vit)
    model, params, stats, _ = network.fresh(config, 3)
    params = {name: tree for name, tree in params.items() if name != "gates"}
    with pytest.raises(UserError, match="trains a, the gates .*, but this network has none"):
        create_state(params, stats, ["f", "a"], model)


@pytest.mark.parametrize(
    ("temporary", "words"),
    [(1600, "About train.batch_size=32"), (9000, "No batch would fit")],
)  # 64 * (900 - 100) / temporary, cut to a multiple of 8
def test_what_fits_in_place_of_a_step_that_does_not_is_said(temporary, words, monkeypatch):
    monkeypatch.setattr(compiling, "memory_of", lambda: 1000.0)
    for fits in (compiling.Need(900, 100, 800), None):  # which is not known
        task.check_need(fits, 64, 8)
    with pytest.raises(UserError, match=words):
        task.check_need(compiling.Need(100 + temporary, 100, temporary), 64, 8)


def test_a_step_that_does_not_fit_is_refused_and_leaves_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "memory_of", lambda: 1024.0)
    with pytest.raises(UserError, match="step needs .*, and there are 0 MiB. No batch would fit"):
        run(config, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_directory_of_longer_phases_is_not_gone_on_with(finished, config, tmp_path):
    config.phases = "fa"
    with pytest.raises(UserError, match="is at step 18, but 'fa' end at step 9"):
        run(config, finished[0])


def test_a_run_of_another_program_is_no_encoder(finished, config):
    config.model.weights = str(finished[0])
    with pytest.raises(UserError, match="is a run of another command"):
        network.fresh(config, 3)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_start_that_makes_no_step_changes_nothing(finished, config, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = contents(workdir)
    config.report = False
    config.train.log_every, config.optim.learning_rate = 1, 1.0
    assert "Done already: 18 of 18 steps" in run(config, workdir)
    assert contents(workdir) == before


def test_a_label_that_a_folder_of_classes_has_not_is_refused_before_a_set_is_made(config, tmp_path):
    config.data.dir, config.data.folder = str(tmp_path / "sets"), str(tmp_path)
    config.data.label = "species"
    with pytest.raises(UserError, match="'species' is not a feature .* they are in 'label'"):
        run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_a_folder_of_classes_has_not_is_refused_before_a_set_is_made(config, tmp_path):
    for species in ("owl", "tern"):
        (tmp_path / "birds/train" / species).mkdir(parents=True)
        (tmp_path / "birds/train" / species / "a.png").write_bytes(b"")
    config.data.dir, config.data.folder = str(tmp_path / "sets"), str(tmp_path / "birds")
    config.data.name, config.data.train = "birds", "tran[:80%]"
    with pytest.raises(UserError, match=r"birds has no split 'tran', it has train\."):
        run(config, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_a_refused_start_leaves_no_empty_folder(config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        run(config, tmp_path / "run", from_step=9)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_back_to_an_earlier_checkpoint_and_ends_the_same(finished, config, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config.report, config.phases, config.checkpoint.keep_every = False, "Fa[bf]aa", 9
    run(config, workdir)
    ended = final(config, workdir)
    said = run(config, workdir, from_step=18)
    assert f"Set aside, in {workdir / 'set_aside'}: the later steps {ended['step']}." in said
    assert [path.name for path in (workdir / "set_aside").iterdir()] == [str(ended["step"])]
    jax.tree.map(np.testing.assert_array_equal, final(config, workdir), ended)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


def test_phases_that_are_done_cannot_become_others(finished, config):
    config.phases = "Fab[bf]a"
    with pytest.raises(UserError, match="was trained by the phases 'Fa\\[bf\\]a' up to step 18"):
        run(config, finished[0])


def test_another_set_of_the_same_name_is_noticed(finished, config, squares, tmp_path):
    tree = shutil.copytree(squares, tmp_path / "tree")
    for name in COLOURS:
        (tree / "train" / name / "0.png").unlink()
    config.data.dir, config.data.folder = str(tmp_path / "sets"), str(tree)
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config.report, config.phases = False, "Fa[bf]aa"
    with pytest.raises(UserError, match="18 was saved, the data set was squares:train .36 images"):
        run(config, workdir)
    assert "going on from step 18" in run(config, workdir, anyway=True)


def test_a_stop_while_a_step_is_compiled_ends_at_once_and_leaves_nothing(config, tmp_path):
    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("was not interrupted")

    said = run(config, tmp_path / "run", compile_by=interrupted)
    assert "Stopped by SIGINT after step 0 of 18. The same command goes on from there." in said
    assert not (tmp_path / "run").exists()


def test_when_no_batch_can_be_read_what_is_in_memory_is_saved(
    finished, config, tmp_path, monkeypatch
):
    whole = task.Transfer.batches

    def broken(self, start):
        for number, batch in enumerate(whole(self, start)):
            if number == 6:
                raise RuntimeError("Worker process was terminated unexpectedly.\nSee above.")
            yield batch

    config.report = False
    with monkeypatch.context() as patch:
        patch.setattr(task.Transfer, "batches", broken)
        words = (
            "read for step 7: RuntimeError: Worker .* unexpectedly. Step 6 is saved, and the same"
        )
        with pytest.raises(UserError, match=words):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    jax.tree.map(
        np.testing.assert_array_equal,
        final(config, tmp_path / "run"),
        final(finished[1], finished[0]),
    )
