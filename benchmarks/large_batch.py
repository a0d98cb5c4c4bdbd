"""A step of the quickstart with 32,768 pairs at once: the whole training run, its time and memory.

    python -m benchmarks.large_batch [--batch 32768] [--microbatch 64] [--folder large] [-- FLAGS]

makes as many drawn pictures with captions as a batch has, in a tar, and runs `otter-jax train` on
them for one step, with the quickstart's encoders, sizes and what it freezes. Then it prints the
largest resident memory of that process, reading and compiling included, and its seconds. FLAGS are
for the command: --config.optim.freeze= trains all of both encoders. A run from checkpoints of an
earlier call would do nothing: give a new --folder.
"""

import argparse
import io
import os
import pathlib
import resource
import subprocess
import sys
import tarfile
import time

import numpy as np
from PIL import Image

SIDE = 96


def write_pairs(path: pathlib.Path, pairs: int) -> None:
    """Writes a tar of so many pictures, 8 x 8 random colours each, and their captions."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(pairs):
            picture = io.BytesIO()
            colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(picture, "JPEG")
            for kind, content in ("jpg", picture.getvalue()), ("txt", f"drawing {number}".encode()):
                entry = tarfile.TarInfo(f"{number:06d}.{kind}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Makes the pairs, trains for a step, and prints what that took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32_768)
    parser.add_argument("--microbatch", type=int, default=64)
    parser.add_argument("--folder", type=pathlib.Path, default="large", help="for pairs and run")
    parser.add_argument("flags", nargs="*", help="for otter-jax train")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tar = options.folder / "pairs.tar"
    write_pairs(tar, options.batch)
    train = {"batch_size": options.batch, "microbatch": options.microbatch, "epochs": 1}
    command = [sys.executable, "-m", "otter_jax", "train", "--config", "quickstart:otter"]
    command += ["--workdir", options.folder / "run", f"--config.data.dir={options.folder / 'data'}"]
    command += ["--config.data.name=drawings", f"--config.data.tars={(str(tar),)}"]
    command += [f"--config.train.{key}={value}" for key, value in train.items()]
    began = time.monotonic()
    subprocess.run([*command, "--config.train.log_every=1", *options.flags], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\nB = {options.batch:,}: {used.ru_maxrss * 1024 / 1e9:.2f} GB resident at most, "
        f"{used.ru_utime + used.ru_stime:,.0f} s of CPU time, {time.monotonic() - began:,.0f} s in "
        f"all; load {os.getloadavg()[0]:.1f} after"
    )


if __name__ == "__main__":
    main()
