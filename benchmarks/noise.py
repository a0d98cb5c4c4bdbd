"""Shuffles a known share of captions, trains on them, and asks `noise` which they were.

    PYTHONPATH=. python benchmarks/noise.py 'PICTURES/train_emoji-*.tar' --share 0.2 [--folder DIR]

Prints the area under the ROC curve of each of its numbers: how often a pair with a wrong caption is
put before one with its own. 0.5 is chance.
"""

import argparse
import glob
import io
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score


def shuffle(pattern: str, share: float, out: pathlib.Path) -> set[str]:
    """Copies tars into one, captions of a share exchanged; returns the keys of those."""
    members: dict[str, dict[str, bytes]] = {}
    for path in sorted(glob.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                members.setdefault(key, {})[kind] = tar.extractfile(member).read()
    keys, rng = sorted(members), np.random.default_rng(0)
    chosen = rng.permutation(len(keys))[: round(share * len(keys))]
    captions = {keys[i]: members[keys[i]]["txt"] for i in chosen}
    others = np.roll(chosen, 1)
    for i, j in zip(chosen, others, strict=True):
        members[keys[i]]["txt"] = captions[keys[j]]
    with tarfile.open(out, "w") as tar:
        for key in keys:
            for kind, content in members[key].items():
                about = tarfile.TarInfo(f"{key}.{kind}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    moved = zip(chosen, others, strict=True)
    return {keys[i] for i, j in moved if captions[keys[i]] != captions[keys[j]]}


def main() -> None:
    """Trains, analyses, and prints one line per number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars")
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--folder", type=pathlib.Path, default="noise_of_shuffled")
    parser.add_argument("--variant", default="otter")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    wrong = shuffle(options.tars, options.share, folder / "pairs.tar")

    def run(*words: object) -> None:
        subprocess.run([sys.executable, "-m", "otter_jax", *map(str, words)], check=True)

    data = ("--config.data.dir", folder / "sets", "--config.data.name", "shuffled")
    run("prepare", folder / "pairs.tar", "--name", "shuffled", "--data_dir", folder / "sets")
    run(
        "train", "--config", f"pairs:{options.variant}_cpu", "--workdir", folder / "run", *data,
        "--config.data.image_size", 128, "--config.data.resize", 128,
        "--config.train.epochs", options.epochs,
    )  # fmt: skip
    run(
        "noise", "shuffled", "--model", folder / "run", "--data_dir", folder / "sets",
        "--out", folder / "noise",
    )  # fmt: skip
    table = pq.read_table(folder / "noise" / "noise.parquet").to_pydict()
    is_wrong = [key in wrong for key in table["key"]]
    print(f"{len(is_wrong):,} pairs, {sum(is_wrong):,} with another's caption")
    for name, sign in (("score", 1), ("cosine", -1), ("own_share", -1), ("trust", -1)):
        print(f"{name:10} AUC {roc_auc_score(is_wrong, sign * np.array(table[name])):.3f}")


if __name__ == "__main__":
    main()
