"""The program as its user meets it: runs, restarts, stops, and every mistake's one paragraph."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import pickles
import pytest
from pictures import coloured
from world import COLOURS, call, make, run, start, state_of, tiny

from otter_jax import mesh
from otter_jax.configs import common
from otter_jax.configs.common import CLIP_MEAN, CLIP_STD
from otter_jax.errors import UserError
from otter_jax.run import convert, directory, trained
from otter_jax.run.console import make_console
from otter_jax.run.trained import image_encoder
from otter_jax.weights import naming, otter_release


@pytest.fixture(autouse=True)
def known():
    """The tiny encoder is known as long as a test."""
    with tiny():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world):
    """An undisturbed run of 16 steps."""
    workdir = world / "whole"
    result = call(world, "--workdir", workdir)
    assert result.returncode == 0, result.stderr[-3000:]
    return workdir, result.stdout


def test_a_run_says_what_it_does_and_leaves_everything_behind(whole):
    workdir, out = whole
    for words in (
        "alpha 0.5, teacher optimal transport (EMA)",
        "frozen      nothing",
        "15 negatives per row",
        "ln B = 2.773",
        "MiB per device",
        "row error",
        "pairs/s, data wait",
        "step 16/16",
        "frequency",
        "chance",
    ):
        assert words in out, words
    assert {p.name for p in workdir.iterdir()} >= {
        "config.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoints", "results",
    }  # fmt: skip
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train] == [4, 8, 12, 16]
    names = {
        "pairs", "teacher", "scale_pairs", "scale_teacher",
        "target_entropy", "own_mass", "row_error",
    }  # fmt: skip
    assert all(names <= line.keys() for line in train)
    assert any((workdir / "tensorboard").iterdir())
    assert out.startswith("Loading JAX and the program\n")
    assert max(map(len, out.replace(str(workdir.parent), "runs").splitlines())) <= 100
    next_two = [line for line in out.splitlines()[-4:] if " -m otter_jax " in line]
    assert [line.split(" -m otter_jax ")[1].split()[0] for line in next_two] == ["eval", "export"]
    start = json.loads((workdir / "run.json").read_text())[0]
    assert start["versions"]["jax"]


def test_results_hold_both_weights_and_the_baselines(whole):
    workdir, _ = whole
    result = json.loads((workdir / "results" / "step_00000016.json").read_text())
    colours = result["sets"]["colours"]
    assert colours["images"] == 40
    assert colours["classes"] == 4
    assert colours["chance"] == {"FH@1": 0.25, "FH@2": 0.5}
    assert colours["frequency"]["FH@1"] == 0.25
    for weights in ("student", "ema"):
        assert colours[weights]["accuracy"] == colours[weights]["FH@1"]
        assert 0 <= colours[weights]["FH@1"] <= colours[weights]["FH@2"] <= 1


def test_an_export_brings_a_card_with_the_numbers_and_a_set_for_clip_benchmark(world, whole):
    workdir, _ = whole
    out = world / "exported"
    result = call(
        world, "--workdir", workdir, "--out", out, "--eval", "colours", name="export", config=None
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for folder in ("open_clip", "image", "text", "eval/colours"):
        assert str(out / folder) in result.stdout
    assert (out / "eval/colours/classnames.txt").read_text().split() == [*COLOURS]
    about = json.loads((out / "otter_jax.json").read_text())
    hit = about["results"]["colours"]["student"]["FH@1"]
    card = (out / "README.md").read_text()
    assert f"| colours: `squares`, `train` | 40 | 4 | student | {hit:.3f} |" in card
    assert "| pairs read | 40 |" in card
    assert "| pairs `squares` | unknown |" in card
    assert str(world) not in card  # no path of this machine


def test_a_transfer_starts_from_the_image_tower_of_a_run_with_its_gates_folded_in(world):
    workdir = world / "gated"
    options = ("--config.gates.shape=filter", "--config.optim.freeze=img/|txt/")
    options += ("--config.model.txt.dropout=0.0", "--config.train.epochs=2")
    result = call(world, "--workdir", workdir, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "frozen      img/|txt/" in result.stdout
    assert "frozen: each caption is read once, before the first step" in result.stdout
    assert "Reading 4 captions once for the run" in result.stdout

    arch, mean, std = "tiny", CLIP_MEAN, CLIP_STD
    towers = []
    for ema in (False, True):
        made = image_encoder(str(workdir), arch=arch, dtype="float32", mean=mean, std=std, ema=ema)
        towers.append(made[1])
    saved = state_of(workdir, 5)
    for tower, who in zip(towers, ("", "['teacher']"), strict=True):
        stem = saved[f"{who}['params']['img']['conv1']['kernel']"]
        gate = saved[f"{who}['params']['gates']['img']['conv1']['kernel']"]
        assert (gate != 1).any()
        np.testing.assert_array_equal(tower["params"]["conv1"]["kernel"], stem * gate)
        assert jax.tree.structure(tower) == jax.tree.structure(towers[0])
    tree = world / "tree"
    for i, name in enumerate(sorted(COLOURS) * 6):
        folder = tree / ("validation" if i < 8 else "train") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(coloured(COLOURS[name], i))
    values = {"phases": "fa", "model.arch": arch, "model.weights": workdir, "model.mean": mean}
    values |= {"model.std": std, "data.dir": world / "sets", "data.name": "tree"}
    values |= {"data.folder": tree, "data.resize": 36, "data.image_size": 32}
    values |= {"train.batch_size": 8, "eval.batch_size": 8}
    result = call(
        world, "--config=transfer", "--workdir", world / "transferred",
        *(f"--config.{key}={value}" for key, value in values.items()),
        name="transfer", config=None,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "The report is in" in result.stdout
    assert (world / "transferred" / "pruning.json").exists()
    for changes, words in (
        ({"arch": "resnet18"}, "model.arch='resnet18', but the run in"),
        ({"mean": (127.0,) * 3}, "model.mean=(127.0, 127.0, 127.0), but the run in"),
    ):
        given = {"arch": arch, "dtype": "float32", "mean": mean, "std": std, "ema": False}
        with pytest.raises(UserError) as caught:
            image_encoder(str(workdir), **given | changes)
        assert words in str(caught.value)


def test_evaluation_alone_gives_the_same_numbers(world, whole):
    workdir, _ = whole
    path = workdir / "results" / "step_00000016.json"
    before = json.loads(path.read_text())
    path.unlink()
    result = call(world, "--workdir", workdir, name="eval", config=None)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(path.read_text()) == before
    assert "student" in result.stdout
    outs = re.findall(r"--out (\S+)", result.stdout)  # of the commands that come next
    assert len(outs) == len(set(outs)) == 2


def test_a_checkpoint_of_the_released_code_evaluates_as_the_run_with_its_weights(world, whole):
    """The run's own weights, written as that code would have, converted and evaluated."""
    workdir, _ = whole
    run = trained.load(directory.config_of(workdir), workdir, mesh.one_device())
    state = {}
    for prefix, weights in (("student.", "student"), ("teacher.", "ema")):
        tensors = naming.export(run.variables[weights], otter_release.family_of(run.model))
        state |= {prefix + name: pickles.tensor(value) for name, value in tensors.items()}
    state["dist_loss.T_s"] = state.pop("student.dist_loss.T_s")
    del state["teacher.dist_loss.T_s"]
    path, converted = world / "last.pth.tar", world / "converted"
    pickles.write_zip(path, {"epoch": 1, "state_dict": state})

    result = call(world, path, "--workdir", converted, name="convert")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "with its EMA teacher" in result.stdout
    result = call(world, "--workdir", converted, name="eval", config=None)
    assert result.returncode == 0, result.stderr[-3000:]
    sets = [
        json.loads((folder / "results" / f"step_{step:08d}.json").read_text())["sets"]
        for folder, step in ((workdir, 16), (converted, 0))
    ]
    assert sets[0] == sets[1]

    again = call(world, path, "--workdir", converted, name="convert")
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    result = call(world, "--workdir", converted)  # what it lacks is said, and nothing lost
    assert result.returncode == 2
    assert "opt_state" in result.stderr


def test_sigterm_saves_and_asks_to_be_started_again(world):
    workdir = world / "stopped"
    process = start(world, "--workdir", str(workdir), "--config.train.epochs=4000")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step "):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 75, "".join(lines) + rest
    assert "Stopped by SIGTERM after step" in rest
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert f"after step {saved} " in rest


def test_a_stop_before_an_evaluation_is_made_up_for(world, whole):
    """As after SIGTERM in the last step: saved, not evaluated."""
    workdir = shutil.copytree(whole[0], world / "unevaluated")
    (workdir / "results" / "step_00000016.json").unlink()
    result = call(world, "--workdir", workdir)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Done already: 16 of 16 steps" in result.stdout
    assert "Building" not in result.stdout
    expected = (whole[0] / "results" / "step_00000016.json").read_text()
    assert (workdir / "results" / "step_00000016.json").read_text() == expected


def test_a_machine_without_git_trains_too(world, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    directory.describe(tmp_path / "run", {"a": 1})
    assert json.loads((tmp_path / "run" / "run.json").read_text())[0]["git"] is None


def test_eight_devices_go_on_where_one_stopped(world, whole):
    workdir = shutil.copytree(whole[0], world / "eight")
    more = ("--config.train.epochs=8", "--config.train.log_every=1", "--profile=15:18")
    result = call(world, "--workdir", workdir, *more, devices=8)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Changed since the last start: train.epochs: 6.4 -> 8.0" in result.stdout
    assert "over 8 devices" in result.stdout
    assert "after step 16, so steps 17 to 18 are traced" in result.stdout
    assert (workdir / "profile" / "where_time_goes.txt").read_text() in result.stdout
    for step in (17, 20):  # a log is due at the first step of a start, too
        assert f"step {step}/20" in result.stdout


def test_what_is_not_finite_ends_the_run_with_its_step_term_and_last_good_checkpoint(world, whole):
    workdir = shutil.copytree(whole[0], world / "diverged")
    result = call(
        world, "--workdir", workdir, "--config.optim.learning_rate=1e38",
        "--config.train.epochs=8", "--config.checkpoint.every=1",
    )  # fmt: skip
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for words in ("Step 17: ", "param_norm is", "the last good checkpoint is step 16", "clip_norm"):
        assert words in result.stderr, result.stderr[-2000:]
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["16"]


MISTAKES = [
    (["--config.optim.lerning_rate=1"], "did you mean optim.learning_rate?"),
    (["--config.train.batch_size=many"], "train.batch_size=many"),
    (["--config.train.batch_size=104"], "batch_size=104 is more than squares"),
    (["--config.train.batch_size=100"], "8 devices; nearest: 96 or 104"),
    (["--config.objective.diagonal=off"], "objective.diagonal='off'"),
    (["--config.objective.alpha=0.3", "--config.objective.teacher=none"], "objective.alpha=0.3"),
    (["--config.optim.freeze=image/"], "img/conv1/"),
    (["--config.model.img.arch=resnet51"], "did you mean"),
    (["--config.model.img.weights=/no/such.pth"], "/no/such.pth"),
    (["--config.model.txt.weights=/no/such"], "/no/such"),
    (["--config.model.dtype=float16"], "float16"),
    (["--config.data.split=tran"], "no split 'tran'"),
    (["--config.data.name=other", "--config.data.tars=()"], "no data set other"),
    (["--config.data.name=third", "--config.data.tars=('/no/such-*.tar',)"], "/no/such-*.tar"),
    (["--config.data.resize=20"], "resize=20"),
    (["--config.eval.best=colours/student/FH@3"], "colours/student/FH@2"),
    (["--config.eval.sets.colours.label=json.color"], "Did you mean json.colour?"),
    (["--config.eval.sets.colours.names=/no/names.txt"], "/no/names.txt"),
    (["--config.eval.sets.colours.templates=('a photo',)"], "where the name of the class goes"),
    (["--config.optim.schedule=weekly"], "optim.schedule='weekly'"),
    (["--config.optim.name=adam"], "optim.name='adam'"),
    (["--config.teacher.checkpoint=/no/run"], "/no/run"),
    (["--config.train.epochs=0"], "train.epochs=0"),
    (["--config.train.log_every=0"], "train.log_every=0"),
    (["--config.eval.batch_size=0"], "eval.batch_size=0"),
    (["--config.data.max_tokens=13"], "12 positions"),
    (["--config.objective.num_processes=3"], "num_processes=3"),
    (["--config.model.img.arch=vit_small_patch16_224", "--config.data.image_size=30"], "of 16"),
    (["surplus"], "surplus"),
    (["surplus", "--config.train.epochs", "3"], "'surplus'"),
]


@pytest.fixture
def mistake(world, whole, monkeypatch):
    """Runs a command with wrong flags on eight devices, compiling nothing; its message."""
    monkeypatch.setattr("jax.stages.Lowered.compile", pytest.fail)

    def message(workdir, *arguments, name="train"):
        result = call(world, "--workdir", workdir, *arguments, name=name, devices=8)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.endswith("\n")
        return result.stderr.removeprefix("error: ")[:-1]

    return message


def test_a_tokenizer_with_more_words_than_its_encoder_is_refused(world, mistake, tmp_path):
    text = shutil.copytree(world / "text", tmp_path / "text")
    with (text / "vocab.txt").open("a") as file:
        file.write("\n" + "\n".join(f"word{i}" for i in range(20)))
    message = mistake(tmp_path / "run", f"--config.model.txt.weights={text}")
    assert "has 34 tokens, but the encoder there embeds 16" in message


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda x: str(x)[:40])
def test_a_mistake_is_one_paragraph_before_anything_is_compiled(
    mistake, tmp_path, arguments, words
):
    text = mistake(tmp_path, *arguments)
    assert words in text
    assert "\n" not in text


def test_a_checkpoint_to_convert_that_is_not_there_is_one_paragraph(mistake, tmp_path):
    text = mistake(tmp_path, "/no/last.pth.tar", name="convert")
    assert "The checkpoint /no/last.pth.tar is not there." in text
    assert "\n" not in text


@pytest.mark.parametrize(("file", "words"), [("", "is a folder"), ("last", "already holds a run")])
def test_what_cannot_be_converted_is_told_before_any_encoder_is_looked_for(tmp_path, file, words):
    (tmp_path / "last").write_bytes(b"")
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    config = common.get_config("otter")
    config.model.txt.weights = "/no/such"
    with pytest.raises(UserError, match=words):
        convert.run(config, tmp_path / file, tmp_path, console=make_console())


def test_a_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(UserError, match="batch_size=500 does not.* 8 devices; nearest: 496 or 504"):
        mesh.check_divides("train.batch_size", 500, 8)
    with pytest.raises(UserError, match="nearest: 8"):
        mesh.check_divides("train.batch_size", 3, 8)
    mesh.check_divides("train.batch_size", 512, 8)


def test_a_mistake_on_the_command_line_has_no_traceback(world):
    """In a process of its own."""
    result = run(world, "--workdir", "run", "--config.optim.lerning_rate=1")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.optim.warmup_step = 3", "warmup_steps"),
        ("config.train.batch_size = 'all'", "batch_size"),
        ("config.method.x = 1", "config"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_paragraph(world, tmp_path, line, words):
    text = (
        (world / "config.py")
        .read_text()
        .replace("    return config", f"    {line}\n    return config")
    )
    (tmp_path / "config.py").write_text(text)
    result = call(tmp_path, "--workdir", tmp_path / "run")
    assert result.returncode == 2
    assert f"{tmp_path / 'config.py'}:" in result.stderr
    assert "Traceback" not in result.stderr
    assert words in result.stderr


def test_a_checkpoint_of_another_model_is_one_paragraph(world, whole):
    result = call(world, "--workdir", whole[0], "--config.model.dim=12", "--anyway")
    assert result.returncode == 2
    assert "another shape" in result.stderr
    assert "img_head/kernel" in result.stderr
    assert "Traceback" not in result.stderr
    saved = json.loads((whole[0] / "config.json").read_text())
    assert saved["model"]["dim"] == 16  # the refused start has not described itself


def test_a_run_can_teach_another(world, whole):
    """The fixed teacher is a run's own checkpoint; that only the student has gates is no matter."""
    result = call(
        world, "--workdir", world / "taught", f"--config.teacher.checkpoint={whole[0]}",
        "--config.train.epochs=1.6", "--config.gates.shape=slice", config=":kd",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "teacher softmax (fixed" in result.stdout
    assert "the teacher is fixed" in result.stdout
    assert " ema " not in result.stdout
    teacher, taught = state_of(whole[0], 16), state_of(world / "taught", 4)
    name = "['params']['img']['conv1']['kernel']"
    np.testing.assert_array_equal(taught[f"['teacher']{name}"], teacher[name])
    assert (taught["['teacher']['params']['gates']['img']['conv1']['kernel']"] == 1).all()
    assert (taught["['params']['gates']['img']['conv1']['kernel']"] != 1).any()


def test_packed_captions_train_to_the_same_weights(world):
    """After one step, whose gradients are in the optimiser's state.

    Packed and padded differ by 1e-6 after four steps, too. One and two devices do not: they add in
    other orders, and where colours are flat the last bit decides which of four equal pixels a
    pooling takes, and with it all of that gradient. In the second step that is 2e-2 of 10.
    """
    states = []
    for packed, devices in ((False, 1), (True, 2)):
        workdir = world / f"packed_{packed}"
        options = ("--config.model.txt.dropout=0.0", "--config.train.epochs=0.4")
        arguments = ("--workdir", workdir, f"--config.data.packed={packed}", *options)
        result = call(world, *arguments, "--config.eval.sets={}", devices=devices)
        assert result.returncode == 0, result.stderr[-3000:]
        states.append(state_of(workdir, 1))
    assert "packed      8 captions of a device in" in result.stdout
    padded, together = states
    for path, values in padded.items():
        np.testing.assert_allclose(together[path], values, 1e-4, 1e-4, err_msg=path)
