"""Compares methods in many runs, by one file."""

import argparse
import functools
import pathlib
import re
from collections.abc import Sequence

from otter_jax.commands import start
from otter_jax.errors import UserError


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "study",
        "FILE --out DIR [FLAGS]",
        "Compares methods over settings and seeds, as a file says: frozen parts of the encoders "
        "are computed once, each method's values are chosen on validation, and the results stand "
        "in one table. The same command goes on where it was stopped.",
        (
            "studies/heads.toml --data pictures --out runs/heads",
            "studies/heads.toml --features heads.npz --out runs/heads --only 1/4",
        ),
    )
    made.flag("file", metavar="FILE", help="the study, in TOML (docs/study.md)")
    made.flag("--out", type=pathlib.Path, metavar="DIR", help="folder of its cells and tables")
    made.flag(
        "--data",
        type=pathlib.Path,
        default=pathlib.Path("."),
        metavar="DIR",
        help="that tars and lists in FILE are relative to [.]",
    )
    made.flag(
        "--data_dir",
        default="~/tensorflow_datasets",
        metavar="DIR",
        help="of all data sets [%(default)s]",
    )
    made.flag(
        "--features",
        type=pathlib.Path,
        metavar="NPZ",
        help="what --prepare has written, in place of sets and weights",
    )
    made.flag(
        "--prepare", type=pathlib.Path, metavar="NPZ", help="write features into one file, and stop"
    )
    made.flag("--dry", action="store_true", help="print runs and what they would take, and stop")
    made.flag("--only", metavar="K/N", help="part K of N, for several machines with one folder")
    made.flag(
        "--together", type=int, metavar="RUNS", help="side by side on a device [1 on CPUs, else 32]"
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Runs a study as the flags say."""
    from otter_jax.study import reading
    from otter_jax.study.plan import WholeStudy

    study, only = reading.read(pathlib.Path(options.file)), _only(options.only)
    if options.out is None and not (options.prepare or options.dry):
        raise UserError("--out is missing: a folder for the cells, for example studies/main.")
    if options.together is not None and options.together < 1:
        raise UserError(f"--together {options.together}: at least 1 run.")
    start.print_loading()
    from otter_jax.run import heap, programs
    from otter_jax.study import conduct

    heap.share_and_keep()
    runner = _whole if isinstance(study, WholeStudy) else _frozen
    make_runner = runner(study, options)
    if make_runner is not None:
        act = conduct.cost if options.dry else conduct.run
        with programs.keep_compiled():
            act(study, make_runner, options.out, only=only, tell=_say)


def _whole(study, options):
    """Returns what makes the runner of whole runs."""
    if options.prepare or options.features:
        raise UserError(f"{study.path} is a study of whole runs, which have no features to keep.")
    if options.together is not None:
        raise UserError(f"{study.path}: whole runs are made one by one; several at once: --only.")
    from otter_jax.commands import configs
    from otter_jax.study.whole import Runner

    load = functools.partial(configs.load, study.config)
    return functools.partial(Runner, study, load, options.out)


def _frozen(study, options):
    """Returns what makes the runner on kept features; writes them and returns None if asked to."""
    from otter_jax.study.features import Features
    from otter_jax.study.running import Runner

    if options.features:
        features = Features.load(options.features)
        features.check(study.about(), options.features, study.path)
    else:
        from otter_jax.study import prepare

        data_dir = pathlib.Path(options.data_dir).expanduser()
        features = prepare.features(study, options.data, data_dir, _say)
    if options.prepare:
        features.save(options.prepare)
        size = options.prepare.stat().st_size / 1e6
        _say(f"{options.prepare}: {size:.1f} MB, all that --features needs.")
        return None
    return functools.partial(Runner, study, features, options.together)


def _say(line: str) -> None:
    print(line, flush=True)


def _only(text: str | None) -> tuple[int, int] | None:
    """Returns K and N of "K/N". Raises UserError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--only {text}: K/N with K from 1 to N, such as 1/4.")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(parser().parse_all(argv)))
