"""Gives wrong command lines to train, eval and transfer, and looks at how each is refused.

    PYTHONPATH=. python tests/wrong_configs.py [--programs 20]

The command lines are made of every key of the configs, by the type of its value, and of mistakes in
names, paths and flags. A right refusal has the exit status 2 and one paragraph without a traceback
after less than 5 s of processor time, and leaves every folder as it was. They are given to the
commands in this process; some of them, evenly spread, to programs of their own, too. Prints those
that were not refused rightly, and exits with 1 if there are any.
"""

import argparse
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

import squares
import world
import xla
from ml_collections import ConfigDict

LIMIT = 5.0  # seconds of processor time
BY_TYPE = {
    bool: ("maybe", "2", "nan", ""),
    int: ("-1", "1.5", "nan", "inf", "many", "(1, 2)", "", "1" + "0" * 20),
    float: ("nan", "inf", "-inf", "-1.0", "much", "(0.1,)", "", "None"),
    tuple: ("(1, 2)", "('',)", "5"),
}
COLOURS = ("(1.0,)", "()", "(nan, 1.0, 1.0)", "('a', 'b', 'c')", "(1.0, 2.0, 300.0)", "-1.0", "x")
PATH = ("/no/such/place", "no-such-name", "no/such/name", "gs://bucket/weights")
PLACE = ("", " ", "/dev/null", "gs://bucket/sets")
SPLIT = ("", "tran", "train[", "train[50%:10%]", "train[a:b]", "train[:0]")
NAME = ("/etc", "../sets", "a/../b", "nan*squares", "-1*squares", "0*squares", "squares+")
WORDS = {  # of texts: values that are wrong for the key
    "model.dtype": ("half", "float16", ""),
    "objective.teacher": ("sinkhorn", "", "None"),
    "objective.diagonal": ("drop", ""),
    "model.img.arch": ("resnet5O", "", "no/such"),
    "model.arch": ("resnet5O", "", "no/such"),
    "model.img.weights": PATH,
    "model.weights": PATH,
    "model.txt.weights": ("", *PATH),
    "data.dir": PLACE,
    "data.name": NAME,
    "data.split": SPLIT,
    "data.folder": ("/no/such/place", "/dev/null"),
    "data.train": SPLIT,
    "data.validation": SPLIT,
    "data.label": ("", "labl"),
    "data.exif": ("turn", ""),
    "optim.name": ("adam", ""),
    "optim.schedule": ("weekly", ""),
    "optim.freeze": ("img/(", "*", "[z-a]", "imgg/", ".*"),
    "gates.shape": ("row",),
    "gates.penalty": ("l3",),
    "teacher.checkpoint": ("/no/such/place", "no-such-name"),
    "eval.best": ("FH@1", "colour/student/FH@1", "colours/students/FH@1", "top-7"),
    "phases": ("", "FFx", "[f", "F a", "[]"),
    "eval.sets.colours.data": ("", "../x", "no_such_set+"),
    "eval.sets.colours.split": SPLIT,
    "eval.sets.colours.label": ("", "json.color", "labl"),
    "eval.sets.colours.names": ("/no/such/names.txt", "/dev/null"),
    "eval.sets.colours.templates": ("()", "(1, 2)", "('',)", "/no/such/templates.txt"),
}
BEYOND = {"seed": (str(2**32),), "model.img.mean": COLOURS, "model.img.std": COLOURS}
BEYOND |= {"model.mean": COLOURS, "model.std": COLOURS}
FLAGS = (
    ("--step=abc",),
    ("--from=abc",),
    ("--num_processes=2",),
    ("--coordinator=here", "--num_processes=2", "--process_id=1"),
    ("--workdri=here",),
    ("--workdir=",),
    ("--workdir=gs://bucket/run",),
    ("--workdir=/dev/null",),
    ("--workdir=/proc/run",),
    ("surplus",),
    ("--config.seed",),
    ("--config.=1",),
    ("--config.seed.deeper=1",),
    ("--config.optim=1",),
)
SETS = (
    "--config.data.tars=('/no/such-*.tar',)",
    "--config.data.tars=()",
    "--config.data.folder=/no/such/place",
)
TRANSFER = """
from otter_jax.configs import transfer

def get_config(variant="filter"):
    config = transfer.get_config(variant)
    config.update_from_flattened_dict({changes!r})
    return config
"""


def values_of(key: str, value) -> tuple[str, ...]:
    """Values that no run can have, by the type of the key's own."""
    if key in WORDS or key in ("model.img.mean", "model.img.std", "model.mean", "model.std"):
        return WORDS.get(key, ()) + BEYOND.get(key, ())
    return BY_TYPE.get(type(value), ()) + BEYOND.get(key, ())


def leaves(config: ConfigDict, prefix: str = ""):
    """Every key of a config, as "a.b", and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def lines(home: pathlib.Path, command: str, config: ConfigDict) -> list[list[str]]:
    """The wrong command lines of a command: its words after the config and the workdir."""
    found = [list(words) for words in FLAGS]
    if command != "eval":  # which reads its own sets
        found += [["--config.data.name=another", words] for words in SETS]
    for key, value in leaves(config):
        found.append([f"--config.{key[:-1]}=1"])
        found += [[f"--config.{key}={wrong}"] for wrong in values_of(key, value)]
    broken = {
        "syntax.py": "def get_config(:\n    pass\n",
        "none.py": "def get_config():\n    pass\n",
        "empty.py": "",
        "raises.py": "def get_config():\n    return 1 / 0\n",
    }
    for name, text in broken.items():
        (home / name).write_text(text)
    names = ("quickstrat", "pairs:oter", "transfer:filtr", "config.py", "/no/such.py", ":otter", "")
    found += [[f"--config={name}"] for name in (*names, *(home / n for n in broken), home)]
    return found


def snapshot(*folders: pathlib.Path) -> dict[str, tuple[int, int]]:
    """What is in these folders: sizes and times by path."""
    paths = (path for folder in folders for path in folder.rglob("*"))
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


def used() -> float:
    """Seconds of processor time of this process and those that it waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(t for who in whose for t in resource.getrusage(who)[:2])


def as_program(home: pathlib.Path, command: str, words: list[str]):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "otter_jax", command, *words],
        env=world.environment(home),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def faults(result: subprocess.CompletedProcess, seconds: float, changed: set[str]) -> list[str]:
    """What is not as it should be about a refusal."""
    paragraph = result.stderr.strip()
    found = [f"status {result.returncode}"] if result.returncode != 2 else []
    if "Traceback" in paragraph or "\n\n" in paragraph or not paragraph.startswith("error"):
        found.append(f"said {paragraph[-300:]!r}")
    if seconds > LIMIT:
        found.append(f"{seconds:.1f} s")
    if changed:
        found.append(f"left {', '.join(sorted(changed)[:4])}")
    return found


def make(home: pathlib.Path) -> dict[str, list[str]]:
    """A world with a finished run of two encoders; the right command line of each command."""
    world.make(home)
    pictures = squares.write(home / "tree")
    changed = dict(leaves(squares.make_config(pictures)))
    (home / "transfer.py").write_text(TRANSFER.format(changes=changed))
    config = ["--config", str(home / "config.py")]
    trained = world.call(home, "--workdir", home / "run", "--config.train.epochs=1.6")
    if trained.returncode:
        raise RuntimeError(trained.stderr)
    return {
        "train": [*config, "--workdir", str(home / "new")],
        "eval": ["--workdir", str(home / "run")],
        "transfer": ["--config", str(home / "transfer.py"), "--workdir", str(home / "new")],
    }


def configs_of(home: pathlib.Path) -> dict[str, ConfigDict]:
    """The config of each command."""
    from otter_jax.commands import configs

    train = configs.load(str(home / "config.py"), [])
    return {
        "train": train,
        "eval": ConfigDict({"eval": train.eval}),
        "transfer": configs.load(str(home / "transfer.py"), []),
    }


def main() -> int:
    """Tries all command lines; the exit status is 1 if one was not refused rightly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=20, help="programs of their own")
    parser.add_argument("--only", default="", help="command lines that hold this text")
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = xla.flags()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["TESTS_CACHE"] = cache
        home = pathlib.Path(folder)
        right = make(home)
        (home / "here").mkdir()
        os.chdir(home / "here")
        every = [
            (command, words)
            for command, config in configs_of(home).items()
            for words in lines(home, command, config)
            if options.only in " ".join([command, *words])
        ]
        wrong = 0
        for number, (command, words) in enumerate(every):
            ways = [world.call]
            if options.programs and number % max(1, len(every) // options.programs) == 0:
                ways.append(as_program)
            for way in ways:
                before, began = snapshot(home), used()
                given = [*right[command], *words]
                result = (
                    as_program(home, command, given)
                    if way is as_program
                    else world.call(home, *given, name=command, config=None)
                )
                seconds, after = used() - began, snapshot(home)
                changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
                found = faults(result, seconds, changed)
                if found:
                    wrong += 1
                    print(f"{command} {' '.join(words)}: {'; '.join(found)}", flush=True)
                    shutil.rmtree(home / "new", ignore_errors=True)
    print(f"{len(every)} wrong command lines, {wrong} not refused as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
