"""A study small enough to run in seconds: features drawn at random, and a file of two methods."""

import numpy as np

from otter_jax.study import prepare, reading
from otter_jax.study.features import Bank, Features, Part

NAMES = [f"thing {i}" for i in range(12)]
WIDTH, TEXT = 10, 6
FILE = """
seeds = 2
baseline = "infonce"

[model]
dim = 6
img = { arch = "tiny", weights = "", mean = [0, 0, 0], std = [1, 1, 1] }
txt = { weights = "text" }

[data]
image_size = 32
max_tokens = 8
train = { mine = ["mine.tar"] }
eval = { unseen = ["unseen.tar"] }
search.name = { label = "thing", names = "names.txt" }
held_out = { search = "name", sets = ["mine"], count = 3 }

[train]
pairs = 96

[choose]
seeds = 1
learning_rate = [1e-2, 3e-2]
log_scale = [2.0]

[[settings]]
set = "mine"
noise = [0.0, 0.5]
batch = 8

[methods]
infonce = {}
otter.choose.epsilon = [0.15]
otter.train.pairs = 80
"""


def drawn(pairs, seed, things):
    """Pairs whose features say, with some noise, which thing they are of."""
    rng = np.random.default_rng(seed)
    words = np.random.default_rng(0).standard_normal((len(NAMES), TEXT))
    seen = np.random.default_rng(1).standard_normal((TEXT, WIDTH))
    own = rng.choice(things, pairs)
    images = words[own] @ seen + 0.3 * rng.standard_normal((pairs, WIDTH))
    texts = words[own] + 0.1 * rng.standard_normal((pairs, TEXT))
    labels = {"thing": [[NAMES[i]] for i in own]}
    return Part(images.astype(np.float32), texts.astype(np.float32), labels)


def make(folder, text=FILE):
    """Writes study.toml and its features.npz; returns both paths."""
    path, features = folder / "study.toml", folder / "features.npz"
    path.write_text(text)
    study = reading.read(path)
    words = np.random.default_rng(0).standard_normal((len(NAMES), TEXT)).astype(np.float32)
    parts = {"mine": drawn(48, 2, range(10)), "unseen": drawn(16, 3, range(10, 12))}
    about = prepare.about(study, WIDTH)
    Features(about, parts, {"name": Bank(NAMES, words)}, {}).save(features)
    return path, features
