"""The door: what commands say of themselves, and of a mistake before JAX is loaded."""

import errno
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import jax
import pytest
from ml_collections import ConfigDict
from world import REPO

from otter_jax import main as entry
from otter_jax.__main__ import COMMANDS
from otter_jax.commands import configs, flags, prepare, start, train
from otter_jax.errors import Stopped, UserError


def told(capsys, name, *argv):
    """The exit status of a command in this process, and what it said on stderr."""
    module = entry if name == "main" else importlib.import_module(COMMANDS[name][0])
    status = module.main([str(word) for word in argv])
    return status, capsys.readouterr().err


@pytest.mark.parametrize("name", [*COMMANDS, "main"])
def test_the_help_of_a_command_fits_a_screen_and_has_two_examples(name, capsys):
    with pytest.raises(SystemExit) as ended:
        told(capsys, name, "--help")
    assert not ended.value.code
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= start.WIDTH
    called = "python -m otter_jax.main" if name == "main" else f"python -m otter_jax {name}"
    assert lines[0].startswith(f"usage: {called} ")
    examples = [line for line in lines if line.startswith(f"  {called} ")]
    assert len(examples) == 2
    assert lines[-1] in (examples[1], "      --config.data.folder=/data/birds")


def test_the_examples_are_understood():
    for name, (module, _) in COMMANDS.items():
        if name == "eval":
            continue  # of a run that is there
        command = importlib.import_module(module)
        parser = command.parser()
        for example in parser.epilog.replace("\\\n", "").splitlines():
            words = shlex.split(example.split(f" {name} ", 1)[1])
            assert words
            if name == "export":  # of a run that is there
                parser.parse_all(words)
            else:
                flags.parse(parser, words)


def test_the_table_of_commands_is_said_and_so_is_the_nearest(capsys):
    assert start.choose(COMMANDS, []) == start.choose(COMMANDS, ["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out and line in out for name, (_, line) in COMMANDS.items())
    assert start.choose(COMMANDS, ["trian", "--config", "quickstart"]) == 2
    assert "no command 'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "argv", "words"),
    [
        ("train", ["--workdri", "x"], "no flag --workdri; did you mean --workdir?"),
        ("train", ["--cofig.seed=1"], "did you mean --config?"),
        ("train", ["--mode=eval"], "There is no flag --mode"),
        ("train", ["--config", "quickstrat", "--workdir", "x"], "did you mean quickstart?"),
        ("train", ["--config", "cc3n:kd", "--workdir", "x"], "did you mean cc3m?"),
        ("train", ["--config", "configs/pair.py", "--workdir", "x"], "did you mean pairs?"),
        ("train", ["--config", "quickstart"], "--workdir is missing"),
        ("train", ["--config", "quickstart", "--workdir", ""], "--workdir is missing"),
        ("export", ["--workdir", "x", "--out", ""], "--out is missing"),
        ("train", ["--workdir", "x"], "--config is missing: one of cc3m"),
        (
            "train",
            ["--config.data.packed", "--config", "pairs", "--workdir", "x"],
            "--config.data.packed needs a value: --config.data.packed=VALUE.",
        ),
        ("train", ["--config=pairs", "--workdir=x", "--config.seed"], "seed needs a value"),
        ("train", ["--config", "pairs", "--workdir", "x", "y"], "What is 'y'?"),
        ("train", ["--config", "pairs", "--workdir", "x", "--process_id", "a"], "invalid int"),
        (
            "eval",
            ["--workdir", "/no/run"],
            "And there is no /no/run/config.json: is /no/run the directory of a run?",
        ),
        ("eval", ["--workdir", "x", "--beside", "y", ""], "--beside: an empty path"),
        ("export", ["--workdir", "/no/run"], "--out is missing"),
        ("export", ["--workdir", "x", "--out", "y", "--by", "size"], "invalid choice: 'size'"),
        ("prepare", ["pairs.csv"], "--name is missing"),
        ("prepare", ["a.csv", "--name", "a", "--config.seed=1"], "prepare takes no config"),
        ("doctor", ["--config", "pairs", "cc3m"], "What is 'cc3m'?"),
        ("convert", ["--config", "cc3m", "--workdir", "x"], "required: CHECKPOINT"),
        ("convert", ["a.tar", "--config", "cc3", "--workdir", "x"], "did you mean cc3m?"),
        ("main", ["--mode=convert"], "invalid choice: 'convert'"),
        ("main", ["--checkpoint=last.pth.tar"], "There is no flag --checkpoint"),
        ("main", ["--workdir", "x"], "--config is missing"),
    ],
)
def test_a_wrong_word_is_one_paragraph_that_names_the_right_one(name, argv, words, capsys):
    status, text = told(capsys, name, *argv)
    assert status == 2
    assert text.startswith("error: ")
    assert words in text
    assert text.count("\n") == 1


def test_help_and_mistakes_do_not_wait_for_jax():
    """In processes of their own, since this one has loaded it."""
    script = (
        "import sys; from otter_jax.__main__ import COMMANDS, start;"
        "status = start.choose(COMMANDS, sys.argv[1:]); assert 'jax' not in sys.modules;"
        "sys.exit(status)"
    )
    for argv, expected in (
        (["--help"], 0),
        (["trian"], 2),
        (["train", "--workdri=x"], 2),
        (["train", "--config=quickstrat", "--workdir=x"], 2),
    ):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert time.monotonic() - began < 10  # a fifth of a second on an idle machine
    assert "did you mean quickstart?" in done.stderr


def test_keys_of_a_config_may_stand_anywhere_and_have_their_values_in_two_ways():
    argv = ["--config.seed", "3", "a", "--noconfig.data.flip", "--config=pairs", "--config.dim=4"]
    rest, overrides = flags.split(argv)
    assert rest == ["a", "--config=pairs"]
    assert overrides == ["--config.seed=3", "--noconfig.data.flip", "--config.dim=4"]


def test_values_of_every_kind_are_set_in_any_number_of_configs_of_one_process():
    for seed in (3, 4):
        config = configs.load(
            "pairs:kd",
            [
                f"--config.seed={seed}",
                "--config.data.tars=('a.tar',)",
                "--config.data.flip=false",
                "--config.optim.freeze=img/|txt/",
                "--config.optim.learning_rate=1",
                "--config.data.name=mine",
            ],
        )
        assert (config.method, config.seed, config.data.tars) == ("kd", seed, ("a.tar",))
        assert (config.data.flip, config.optim.freeze) == (False, "img/|txt/")
        assert config.optim.learning_rate == 1.0
        assert config.eval.sets.heldout.data == "mine"  # which follows what is set
    assert configs.load("pairs", []).data.tars == ()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.optim.lerning_rate=1", "did you mean optim.learning_rate?"),
        ("--config.trian.batch_size=1", "did you mean train.batch_size?"),
        ("--config.learning_rate=1", "did you mean optim.learning_rate?"),
        ("--config.data.name.first=1", "'data.name.first': data.name is a value."),
        ("--config.data.tars[0]=a.tar", "did you mean data.tars?"),
        ("--config.train.batch_size=many", "train.batch_size=many"),
        ("--config.data.flip=perhaps", "data.flip"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_name(override, words):
    with pytest.raises(UserError) as caught:
        configs.load("quickstart", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config():\n    return {}['a']", "config.py:2: KeyError: 'a'"),
        ("import nothing_like_it", "config.py:1: ModuleNotFoundError: No module named"),
        ("def get_config(:", "config.py:1: SyntaxError: "),
        ("\nx = 1 / 0", "config.py:2: ZeroDivisionError: division by zero"),
        ("def get_config(a):\n    pass", "config.py:1: TypeError: get_config() missing 1 required"),
        ("a = 1", "has no attribute 'get_config'"),
        ("def get_config():\n    return {}", "get_config returned dict, not a ConfigDict"),
        (
            "from otter_jax.configs import pairs\n\n\ndef get_config():\n"
            "    c = pairs.get_config()\n    c.optim.warmup_step = 3\n    return c",
            'cannot be added since the config is locked. Did you mean "warmup_steps" instead of',
        ),
    ],
)
def test_a_config_that_raises_is_told_with_its_own_last_line(tmp_path, capsys, text, words):
    path = tmp_path / "config.py"
    path.write_text(text)
    status, said = told(capsys, "train", "--config", path, "--workdir", tmp_path / "run")
    assert status == 2
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1


def test_a_config_of_another_command_says_whose_it_is(tmp_path, capsys):
    _, said = told(capsys, "train", "--config", "transfer", "--workdir", tmp_path)
    assert "transfer is for another command" in said
    assert "no key 'objective'; it is for 'transfer'" in said
    _, said = told(capsys, "transfer", "--config", "pairs", "--workdir", tmp_path)
    assert "no key 'phases'; it is for 'train'" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--config is missing"),
        (("--config", "transfer", "--config.phases=FFq"), "phases='FFq': there is no group 'q'"),
        (("--config", "transfer:gates"), "There is no variant 'gates'"),
        (("--config", "transfer", "--share=0.2"), "There is no flag --share"),
    ],
)
def test_a_mistake_of_transfer_is_one_paragraph_and_status_2(tmp_path, capsys, arguments, words):
    status, said = told(capsys, "transfer", *arguments, "--workdir", tmp_path / "run")
    assert status == 2
    assert said.startswith(f"error: {words}")
    assert "Traceback" not in said


def test_the_config_of_a_run_takes_the_place_of_a_missing_one_and_its_keys_may_be_set(tmp_path):
    config = configs.load("quickstart:ls", ["--config.data.tars=('a.tar',)"])
    (tmp_path / "config.json").write_text(config.to_json())
    argv = ["--workdir", str(tmp_path), "--config.data.tars=b.tar", "--config.eval.batch_size=8"]
    from otter_jax.commands import evaluate

    found = flags.config(flags.parse(evaluate.parser(), argv), needs="objective")
    assert (found.method, found.eval.batch_size, found.data.tars) == ("ls", 8, ("b.tar",))
    before, after = (json.loads(c.to_json()) for c in (config, found))
    after["data"]["tars"], after["eval"]["batch_size"] = ["a.tar"], 256
    assert before == after


@pytest.mark.parametrize(
    ("kind", "argv", "words"),
    [
        ({"phases": "fa"}, ["--weights=ema"], "--weights is for two encoders, and"),
        ({"phases": "fa"}, ["--eval=unseen"], "--eval is for two encoders, and"),
        ({"objective": {}}, ["--share=0.2"], "--share is for a transfer, and"),
        ({"objective": {}}, ["--by=attention"], "--by is for a transfer, and"),
        ({"phases": "fa"}, ["--by=magnitude"], "--by goes with --share"),
    ],
)
def test_flags_of_another_kind_of_run_are_an_error_of_export(tmp_path, capsys, kind, argv, words):
    (tmp_path / "config.json").write_text(json.dumps(kind))
    status, said = told(capsys, "export", "--workdir", tmp_path, "--out", tmp_path / "out", *argv)
    assert status == 2
    assert words in said


def test_an_ending_becomes_an_exit_status(capsys):
    def ends_by(error):
        def run():
            raise error

        return start.status(run)

    assert start.status(lambda: None) == 0
    assert start.status(lambda: 1) == 1
    assert ends_by(Stopped()) == start.REQUEUE == 75
    assert ends_by(UserError("It was you.")) == 2
    assert capsys.readouterr().err == "error: It was you.\n"
    assert ends_by(ValueError("It was us.")) == 1
    assert "Traceback" in capsys.readouterr().err
    assert ends_by(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C.\n"
    assert start.status(lambda: signal.raise_signal(signal.SIGTERM)) == start.REQUEUE
    assert "Stopped by SIGTERM" in capsys.readouterr().err


def test_a_disk_that_refuses_is_one_paragraph_and_other_errors_are_not(capsys):
    def ends_by(number):
        def run():
            raise OSError(number, os.strerror(number), "runs/x/metrics.jsonl")

        return start.status(run)

    assert ends_by(errno.ENOSPC) == 2
    assert capsys.readouterr().err == (
        "error: The system refused to read or write runs/x/metrics.jsonl: No space left on "
        "device.\n"
    )
    assert ends_by(errno.ENOENT) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workdir", "words"),
    [
        ("gs://bucket/run", "is an address, and a path of a file system is needed"),
        ("{file}", "{file} is a file"),
        ("{file}/run", "{file} is a file"),
        ("/proc/run", "cannot be the directory of a run: no file can be made in /proc ("),
    ],
)
@pytest.mark.parametrize("name", ["train", "transfer", "eval"])
def test_a_place_that_holds_no_run_is_refused_at_once(tmp_path, capsys, name, workdir, words):
    file = tmp_path / "file"
    file.touch()
    config = [] if name == "eval" else ["--config", "transfer" if name == "transfer" else "pairs"]
    place = workdir.replace("{file}", str(file))
    status, said = told(capsys, name, "--workdir", place, *config)
    assert status == 2
    assert words.replace("{file}", str(file)) in said
    assert "Traceback" not in said


def test_with_a_fixed_teacher_the_best_is_the_students(capsys):
    argv = ["--config", "pairs:kd", "--workdir", "x", "--config.teacher.checkpoint=runs/first"]
    found = flags.config(flags.parse(train.parser(), argv), needs="objective")
    assert found.eval.best == "heldout/student/FH@1"
    assert "with a fixed teacher there are no EMA weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [(signal.SIGINT, 130, "Stopped by Ctrl-C.\n"), (signal.SIGTERM, 75, "Stopped by SIGTERM.")],
)
def test_a_stop_of_which_a_library_makes_another_error_is_still_a_stop(
    capsys, number, expected, words
):
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let jobs ignore it
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def run():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as error:  # as extension modules do while they are imported
            raise ImportError("an extension could not be initialized") from error

    try:
        assert start.status(run) == expected
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    finally:
        signal.signal(signal.SIGINT, ours)
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == 1


def test_what_orbax_logs_and_then_raises_is_not_told_twice(caplog):
    def run():
        for library in ("orbax", "grain"):
            text = f"from absl import logging; logging.error('of {library}')"
            exec(compile(text, f"/site-packages/{library}/future.py", "exec"))

    assert start.status(run) == 0
    assert caplog.messages == ["of grain"]


def test_a_stop_is_heard_where_python_ignores_what_it_raises(capsys):
    """As in JAX's callback of garbage collections: whatever is raised there is dropped."""

    class Ignoring:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def run():
        Ignoring()
        time.sleep(5)

    assert start.status(run) == start.REQUEUE
    assert capsys.readouterr().err == "Stopped by SIGTERM. The same command starts again.\n"


def test_ctrl_c_while_a_dataclass_is_made_ends_with_the_status_of_any_other(tmp_path):
    """Python makes them in exec; if KeyboardInterrupt leaves that, `python -m` ends by a signal."""
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from otter_jax.commands import start; exit(start.status(lambda: exec({code!r})))"
    )
    (tmp_path / "program.py").write_text(program)
    own = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{tmp_path}"}
    found = subprocess.run(
        [sys.executable, "-m", "program"], capture_output=True, text=True, env=own
    )
    assert (found.returncode, found.stderr) == (130, "Stopped by Ctrl-C.\n")


def test_what_comes_next_is_said_in_commands_that_can_be_copied():
    said = start.following(("eval", "--workdir", "runs/with space"))
    assert said == "Next:\n  python -m otter_jax eval --workdir 'runs/with space'"
    long = start.following(("export", "--workdir", "r" * 60, "--out", "o" * 60))
    assert all(len(line) <= start.WIDTH for line in long.splitlines())
    assert long.count(" \\\n      --") == 2


def test_the_program_is_called_as_a_shell_here_finds_it(monkeypatch, tmp_path):
    home = tmp_path / "my venv" / "bin"
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    assert start.program() == f"'{home}/python' -m otter_jax"  # no PATH leads there
    monkeypatch.chdir(tmp_path)
    assert start.program() == "'my venv/bin/python' -m otter_jax"


def test_the_first_of_several_processes_alone_says_what_is_loaded(capsys, monkeypatch):
    for process_id, variables, said in (
        (None, {}, True),
        (0, {}, True),
        (1, {}, False),
        (None, {"SLURM_PROCID": "1"}, False),
        (None, {"OMPI_COMM_WORLD_RANK": "0"}, True),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            start.print_loading(process_id)
        assert bool(capsys.readouterr().out) is said


def test_a_set_that_is_prepared_says_how_to_look_at_it_and_train_on_it(capsys, monkeypatch):
    from otter_jax.run.console import make_console

    def said(*argv):
        options = flags.parse(prepare.parser(), ["there", "--name", "mine", *argv])
        prepare._print_next(options, make_console())
        return capsys.readouterr().out

    assert "doctor --config pairs:cpu --config.data.name=mine\n" in said()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "doctor --config pairs --config.data.name=mine\n" in said()
    assert "no GPU" not in said()
    assert "train --config cc3m --config.data.name=mine" in said("--layout", "cc3m")
    assert "--config.data.dir=/sets" in said("--data_dir", "/sets")
    assert said("--layout", "open_images") == ""


def test_configs_are_found_by_name_and_by_path(tmp_path):
    assert configs.find("quickstart:kd")[1] == ["kd"]
    assert configs.find("quickstart") == (configs.HOME / "quickstart.py", [])
    own = tmp_path / "quickstart.py"
    own.write_text("from otter_jax.configs import pairs\nget_config = pairs.get_config")
    found = configs.load(f"{own}:ls", [])
    assert isinstance(found, ConfigDict)
    assert found.data.name == "pairs"
    assert not list(tmp_path.glob("__pycache__"))


def test_the_process_ends_with_its_status_while_a_thread_compiles():
    # A thread in C++ would be cut off by Python's end, and abort the process.
    code = (
        "import threading; from otter_jax.commands import start; "
        "threading.Thread(target=threading.Event().wait, name=start.COMPILER).start(); "
        "print('said', end=''); start.leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"said")
    assert start.leave(3) == 3
