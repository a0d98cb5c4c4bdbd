"""Flags that several commands share: --config, --workdir, --out, and those of processes.

A key of a config is given as --config.KEY=VALUE or --config.KEY VALUE, before or after --config.
"""

import argparse
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from otter_jax.commands import configs
from otter_jax.commands.start import Parser
from otter_jax.errors import UserError
from otter_jax.run import directory

if TYPE_CHECKING:  # it imports JAX
    from otter_jax.predict.model import Model

DATA_DIR = "~/tensorflow_datasets"  # where TFDS has them, too
MISSING = {
    "model": "a run's directory, for example runs/first",
    "workdir": "the directory of the run, for example runs/first",
    "out": "a new folder, for example exported",
    "name": "a name for the set, of small letters, digits and _, for example mine",
}


def add_config(parser: Parser, *, saved: bool = False) -> None:
    """Adds --config; if `saved`, it may be left out for the config that the run was started by."""
    parser.set_defaults(saved=saved)
    otherwise = " [the run's own]" if saved else ""
    parser.flag(
        "--config",
        metavar="NAME[:VARIANT]",
        help=f"a config of the program, or a file PATH.py[:VARIANT]{otherwise}",
    )
    parser.flag(
        "--config.KEY",
        metavar="VALUE",
        dest="config_key",
        help="another value for one of its keys, such as --config.train.epochs=8",
    )


def add_data_dir(parser: Parser) -> None:
    """Adds --data_dir."""
    parser.flag(
        "--data_dir", default=DATA_DIR, metavar="DIR", help="of all data sets [%(default)s]"
    )


def add_workdir(parser: Parser, *, read_only: bool = False) -> None:
    """Adds --workdir; unless `read_only`, it must be a place that can be written to."""
    parser.set_defaults(read_only=read_only)
    parser.flag(
        "--workdir",
        type=_path,
        metavar="DIR",
        help="directory of the run, with all that it needs to go on",
    )


def add_workdirs(parser: Parser) -> None:
    """Adds WORKDIR, once or more, as `workdirs`."""
    parser.flag(
        "workdirs", nargs="+", type=_path, metavar="WORKDIR", help="the directories of runs"
    )


def add_resuming(parser: Parser) -> None:
    """Adds the flags that say how to go on with a run that is there already."""
    parser.flag(
        "--from",
        type=int,
        dest="from_step",
        metavar="STEP",
        help="go on from this checkpoint; later ones are set aside [the latest]",
    )
    parser.flag(
        "--anyway",
        action="store_true",
        help="go on although data, model or method differ from the run's",
    )


def add_profile(parser: Parser) -> None:
    """Adds --profile."""
    parser.flag(
        "--profile",
        type=_span,
        metavar="FIRST:LAST",
        help="traces these steps, and says where their time goes, for example 10:15",
    )


def add_step(parser: Parser) -> None:
    """Adds --step."""
    parser.flag(
        "--step",
        type=int,
        metavar="N",
        help="the checkpoint to take [the best by eval.best, else the latest]",
    )


def add_beside(parser: Parser) -> None:
    """Adds --beside."""
    parser.flag(
        "--beside",
        type=_path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="runs that are evaluated already: their results stand in the same tables",
    )


def add_processes(parser: Parser) -> None:
    """Adds the flags by which several processes find each other."""
    parser.flag(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, if neither SLURM nor Open MPI gives it",
    )
    parser.flag("--num_processes", type=int, metavar="N", help="how many processes the run has")
    parser.flag("--process_id", type=int, metavar="I", help="which of them this is, from 0")


def add_out(parser: Parser) -> None:
    """Adds --out."""
    parser.flag("--out", type=_path, metavar="DIR", help="a new folder for what is written")


def add_file(parser: Parser, *, help: str) -> None:
    """Adds --out FILE, as `file`; it is None if it is left out."""
    parser.flag("--out", dest="file", type=_path, metavar="FILE", help=help)


def add_sheet(parser: Parser) -> None:
    """Adds --sheet."""
    parser.flag(
        "--sheet", type=_path, metavar="FILE.png", help="draws the pictures found, to look at"
    )


def add_model(parser: Parser) -> None:
    """Adds MODEL, and which weights of a run are taken."""
    parser.flag(
        "model",
        metavar="MODEL",
        help="a run's directory, an exported folder, or another CLIP",
    )
    add_weights(parser)


def add_weights(parser: Parser) -> None:
    """Adds --weights and --step of a MODEL that is a run."""
    parser.set_defaults(batch_size=None)
    parser.flag(
        "--weights",
        choices=("student", "ema"),
        help="of a run [student]; and the checkpoint [the best by its eval.best, else the latest]",
    )
    parser.flag("--step", type=int, metavar="N", beside="--weights")


def add_sources(parser: Parser) -> None:
    """Adds SOURCE, as `sources`."""
    parser.flag(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="pictures, folders, globs in quotes, or - for paths on stdin",
    )


def add_format(parser: Parser) -> None:
    """Adds --format of a table."""
    parser.flag(
        "--format",
        choices=["table", "csv", "jsonl", "parquet"],
        help="of what is written [by --out; a table on a terminal, else csv]",
    )


def add_batch_size(parser: Parser) -> None:
    """Adds --batch-size of a MODEL's computation."""
    parser.flag(
        "--batch-size",
        type=int,
        metavar="N",
        help="pictures computed at once, over all devices [64 for each; GPUs 512]",
    )


def load_model(options: argparse.Namespace, **instead: Any) -> "Model":
    """Loads MODEL as the flags say, or what stands in their place; notes about it go to stderr.

    Raises UserError as `predict.loading.load` does.
    """
    from otter_jax.predict import loading
    from otter_jax.run import heap

    heap.share_and_keep()
    asked = vars(options) | instead
    return loading.load(
        asked["model"],
        weights=asked["weights"],
        step=asked["step"],
        batch_size=asked["batch_size"],
        tell=lambda note: print(f"Note: {note}", file=sys.stderr),
    )


def _span(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FIRST:LAST, the first and the last step to trace, such as 10:15"
        )
    return first, last


def _path(text: str) -> pathlib.Path | None:
    if not text.strip():  # "$DIR" of a variable that is not set: no path, not the current folder
        return None
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is an address, and a path of a file system is needed: mount it"
        )
    return pathlib.Path(text).expanduser()


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Returns the flags' values; `overrides` has the config's keys, as --config.KEY=VALUE.

    Raises UserError for flags that cannot be parsed, and for a config that does not exist.
    """
    rest, overrides = split(argv)
    options = parser.parse_all(rest)
    options.overrides = overrides
    if overrides and "config_key" not in options:
        raise UserError(f"{parser.command} takes no config, but here is {overrides[0]}.")
    for name in MISSING:
        if name in options and getattr(options, name) is None:
            raise UserError(f"--{name} is missing: {MISSING[name]}.")
    if "beside" in options and None in options.beside:  # "$DIR" of a variable that is not set
        raise UserError("--beside: an empty path; give the directories of runs.")
    if "workdir" in options and not options.read_only:
        directory.check_place(options.workdir)
    if "config" in options:
        check_config(options, saved=options.saved)
    return options


def check_config(options: argparse.Namespace, *, saved: bool) -> None:
    """Raises UserError if the config is missing and the run has none of its own.

    Only if `saved`, the run's own config may take the place of --config.
    """
    if options.config is not None:
        configs.find(options.config)
    elif not saved or not (options.workdir / "config.json").exists():
        text = f"--config is missing: one of {', '.join(configs.names())}, or the path of a file."
        if saved:
            path = options.workdir / "config.json"
            text += f" And there is no {path}: is {path.parent} the directory of a run?"
        raise UserError(text)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the command line into ordinary words and --config.KEY=VALUE overrides.

    Raises UserError for a key without a value.
    """
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        if not re.match(r"--?(no)?config\.", word):
            rest.append(word)
        elif "=" in word or re.match("--?no", word):
            overrides.append(word)
        else:
            value = next(words, "--")
            if value.startswith("--"):  # the end, or another flag
                raise UserError(f"{word} needs a value: {word}=VALUE.")
            overrides.append(f"{word}={value}")
    return rest, overrides


def config(options: argparse.Namespace, *, needs: str) -> ConfigDict:
    """Returns the config given, else the one that the run was started by.

    Raises UserError if it has no key `needs`, and so is for another command.
    """
    found = any_config(options)
    if needs not in found:
        of = options.config or options.workdir
        raise UserError(
            f"{of} is for another command: its config has no key {needs!r}; it is for "
            f"{directory.command_of(found)!r}."
        )
    return found


def any_config(options: argparse.Namespace) -> ConfigDict:
    """Returns the config given, else the one that the run was started by, for any command."""
    if options.config is not None:
        return _settled(configs.load(options.config, options.overrides))
    found = ConfigDict(configs.with_tuples(directory.read_config(options.workdir).to_dict()))
    return _settled(configs.override(found.lock(), options.overrides))


def _settled(found: ConfigDict) -> ConfigDict:
    """Lets eval.best speak of the student where a fixed teacher leaves no EMA weights; says so."""
    if "teacher" in found and found.teacher.checkpoint:
        best = found.eval.best.replace("/ema/", "/student/")
        if best != found.eval.best:
            print(f"eval.best is {best}: with a fixed teacher there are no EMA weights.")
            found.eval.best = best
    return found


def join(options: argparse.Namespace, config: ConfigDict) -> None:
    """Joins the other processes of this run, if there are any; only the first goes on printing.

    Raises UserError as `cluster.join` does, if the processes were not started alike, or do not see
    the same --workdir.
    """
    from otter_jax.run import cluster, heap, stops

    heap.share()
    cluster.join(options.coordinator, options.num_processes, options.process_id)
    heap.keep()
    if not cluster.is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # silences C++ libraries, too
    stops.listen()
    cluster.agree(lambda: directory.versions() | directory.flatten(json.loads(config.to_json())))
    cluster.check_shared(options.workdir)
