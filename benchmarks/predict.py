"""What `predict` reaches of its encoder's speed, and how fast others' programs name pictures.

    python -m benchmarks.predict --peers PYTHON [--pictures 10000] [--turns 5] [--export DIR]
    python -m benchmarks.predict --peers PYTHON --memory 2000 100000

A CLIP ViT-B/32 of random weights is written for transformers and for open_clip by PYTHON, an
interpreter that has both (`pip install open_clip_torch transformers torchvision`); `predict` reads
the former. With --export what the command `export` wrote takes its place, which transformers'
pipeline cannot read. Photographs of scikit-image are cropped at random into JPEGs (shorter side
256), and all programs name each of ten classes, in float32 on the same cores:

- encoder: the image tower alone, on pixels that lie in memory
- predict: the command, from paths to a CSV
- open_clip: the loop of its documentation, fed by a DataLoader of as many processes as threads
- pipeline: transformers' zero-shot-image-classification, a picture at a time as it is by default

Each is a process of its own that has loaded its model and named a batch before; they take turns.
The pipeline, which embeds the classes for each picture again, is given a tenth of the pictures.
Wall and processor time are those between the first path and the last row, child processes
included. --memory starts the whole command on so many files, hard links of a thousand small ones,
with a CLIP of two small layers, and prints the peak of its memory.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import skimage.data
from PIL import Image

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
CLASSES = ("cat", "dog", "sofa", "cup", "moon", "text", "salt", "rocket", "astronaut", "tree")
SHORTER = 256  # side of the pictures, in pixels
FEW, SMALL = 1_000, 96  # pictures that are linked to, for --memory, and their shorter side
PROGRAMS = {
    "encoder": 1,
    "predict": 1,
    "open_clip": 1,
    "pipeline": 10,
}  # and 1 of how many pictures
OURS = ("encoder", "predict")
PEERS = pathlib.Path(__file__).with_name("predict_peers.py")


def make_pictures(folder: pathlib.Path, count: int, shorter: int) -> None:
    """Fills a folder with JPEGs: parts of photographs, some mirrored."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOS]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        share = rng.uniform(0.6, 1)
        width, height = (round(side * share) for side in photo.size)
        left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        box = (left, top, left + width, top + height)
        scale = shorter / min(width, height)
        small = photo.resize((round(width * scale), round(height * scale)), box=box)
        if rng.random() < 0.5:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        small.save(folder / f"{number:06}.jpg", quality=90)


def work(kind: str, model: str, folder: pathlib.Path) -> None:
    """Names the pictures START to END of each line on stdin; answers with the time it took."""
    import rich.console

    from otter_jax.predict import pictures, predicting, tables
    from otter_jax.predict.classes import read_classes
    from otter_jax.predict.loading import load
    from otter_jax.run import heap

    heap.share_and_keep()  # as the command does
    loaded = load(model)
    paths = sorted(map(str, folder.iterdir()))
    console = rich.console.Console(quiet=True)
    asked = read_classes(",".join(CLASSES))
    namer = predicting.Namer(loaded, asked, ["a photo of {}."], 5, None, False, console)
    first = next(pictures.read(loaded.read, paths, batch=loaded.batch_size)).pixels

    def encode(some):
        for start in range(0, len(some), loaded.batch_size):
            loaded.embed_pixels(first[: len(some) - start])

    def name(some):
        with tempfile.TemporaryDirectory() as scratch:
            out = pathlib.Path(scratch, "found.csv")
            with tables.table("csv", predicting.COLUMNS, {}, out) as table:
                predicting.name_all(namer, pictures.Pictures(tuple(some)), table, None, console)

    run = {"encoder": encode, "predict": name}[kind]
    run(paths[: loaded.batch_size])
    for line in sys.stdin:
        start, end = map(int, line.split())
        wall, cpu = time.perf_counter(), time.process_time()
        run(paths[start:end])
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def compare(
    models: dict[str, pathlib.Path], folder: pathlib.Path, options: argparse.Namespace
) -> str:
    """A table of all programs: pictures a second, processor time, both beside the encoder's."""
    threads = str(options.threads)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    environment = os.environ | limits | {"HF_HUB_OFFLINE": "1"}

    def start(kind):
        args = ["--work", kind, "--model", str(models[kind]), "--folder", str(folder)]
        args += ["--classes", ",".join(CLASSES), "--threads", threads]
        program = [sys.executable, "-m", "benchmarks.predict"]
        return subprocess.Popen(
            [*(program if kind in OURS else [options.peers, str(PEERS)]), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    started = {kind: start(kind) for kind in models}
    each = options.pictures // options.turns
    times: dict[str, list] = {kind: [] for kind in models}
    loads = []
    for turn in range(options.turns):
        for kind, process in started.items():
            count = max(1, each // PROGRAMS[kind])
            process.stdin.write(f"{turn * each} {turn * each + count}\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            times[kind].append([1000 * seconds / count for seconds in found])
            print(f"turn {turn}, {kind}: {times[kind][-1]} ms", file=sys.stderr, flush=True)
        loads.append(os.getloadavg()[0])
    for process in started.values():
        process.stdin.close()
        process.wait()
    lines = [
        f"{each * options.turns:,} pictures in {options.turns} turns, {threads} threads, float32; "
        f"load {min(loads):.1f} to {max(loads):.1f}; medians, each ratio within its turn",
        "",
        "| program | pictures/s | wall, ms | CPU, ms | encoder: program, wall | CPU |",
        "|---|---|---|---|---|---|",
    ]
    own = np.array(times["encoder"])
    for kind in models:
        taken = np.array(times[kind])
        wall, cpu = np.median(taken, axis=0)
        shares = np.median(own / taken, axis=0)
        lines.append(
            f"| {kind} | {1000 / wall:.1f} | {wall:.1f} | {cpu:.1f} | "
            f"{shares[0]:.0%} | {shares[1]:.0%} |"
        )
    return "\n".join(lines)


def memory(counts: list[int], peers: str, folder: pathlib.Path, home: pathlib.Path) -> None:
    """Prints what the whole command needs for so many files."""
    subprocess.run([peers, str(PEERS), "--write", str(home / "small"), "--small"], check=True)
    files = sorted(folder.iterdir())
    for count in counts:
        links = home / f"links_{count}"
        for number in range(count):
            place = links / f"{number // 1000:03}" / f"{number:06}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(files[number % len(files)], place)
        words = [str(home / "small" / "transformers"), str(links), "--classes", ",".join(CLASSES)]
        out = home / f"found_{count}.csv"
        process = subprocess.Popen(
            [sys.executable, "-m", "otter_jax", "predict", *words, "--out", str(out)]
        )
        began = time.perf_counter()
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0, status
        rows = sum(1 for _ in out.open()) - 1
        print(
            f"{count:,} pictures, {rows:,} rows: {time.perf_counter() - began:.0f} s wall, "
            f"{used.ru_utime + used.ru_stime:.0f} s CPU; memory at most "
            f"{used.ru_maxrss / 1024:,.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with both")
    parser.add_argument("--pictures", type=int, default=10_000, metavar="N")
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--memory", type=int, nargs="+", metavar="N", help="of so many files")
    parser.add_argument("--folder", type=pathlib.Path, metavar="DIR", help="of the pictures")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--export", type=pathlib.Path, metavar="DIR", help="in place of ViT-B/32")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--classes", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.model, options.folder)
        return
    if not options.peers:
        parser.error("--peers PYTHON is missing: an interpreter that has open_clip, transformers")
    with tempfile.TemporaryDirectory() as scratch:
        home = pathlib.Path(scratch)
        folder = options.folder or home / "pictures"
        if not folder.exists():
            count, shorter = (FEW, SMALL) if options.memory else (options.pictures, SHORTER)
            make_pictures(folder, count, shorter)
        if options.memory:
            memory(options.memory, options.peers, folder, home)
            return
        if options.export:
            models = dict.fromkeys(OURS, options.export) | {
                "open_clip": options.export / "open_clip"
            }
        else:
            made = home / "models"
            subprocess.run([options.peers, str(PEERS), "--write", str(made)], check=True)
            models = dict.fromkeys(OURS, made / "transformers") | {
                "open_clip": made / "open_clip",
                "pipeline": made / "transformers",
            }
        print(compare(models, folder, options))


if __name__ == "__main__":
    main()
