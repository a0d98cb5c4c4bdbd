"""How fast images become rows of a batch, on one core, beside the released code's way.

    python -m benchmarks.input [--rounds 25] [--soak 50000]

Photographs of scikit-image as JPEG (shorter side 400, quality 90) and the same with the shorter
side at 256, as `otter-jax prepare` stores them. Each way makes every picture in every round; what
counts is its least CPU time, so that a busy machine does not matter. Cropped are 224 pixels.

The released code's way is torchvision's: decode, resize, crop, to float, normalise. Where
torchvision is not installed, Pillow and NumPy take its steps (without the copies of its tensors,
so a little faster). --soak reads that many images through the whole pipeline, and prints how much
memory the process has in between.
"""

import argparse
import io
import pathlib
import resource
import tempfile
import time

import numpy as np
import skimage.data
import tensorflow_datasets as tfds
from PIL import Image

from otter_jax.data import images, pipeline
from otter_jax.data.build.builder import write
from otter_jax.data.source import open_dataset

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE, RESIZE = 224, 256


def photos(shorter: int) -> list[bytes]:
    """The photographs as JPEG."""
    found = []
    for name in PHOTOS:
        img = Image.fromarray(getattr(skimage.data, name)())
        scale = shorter / min(img.size)
        file = io.BytesIO()
        img.resize((round(img.width * scale), round(img.height * scale))).save(
            file, "JPEG", quality=90
        )
        found.append(file.getvalue())
    return found


def released():
    """The released code's transform, and who does it."""
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError):
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
        rng = np.random.default_rng(0)

        def transform(img):
            scale = RESIZE / min(img.size)
            shape = (int(img.width * scale), int(img.height * scale))
            img = img.resize(tuple(max(RESIZE, side) for side in shape), Image.Resampling.BICUBIC)
            left, top = (int(rng.integers(side - SIZE + 1)) for side in img.size)
            pixels = np.array(img.crop((left, top, left + SIZE, top + SIZE)))
            return (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std

        return transform, "Pillow and NumPy"
    steps = [
        transforms.Resize(RESIZE, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps), "torchvision"


def table(rounds: int) -> str:
    """Milliseconds of CPU an image, and how many times as fast as the released way."""
    large, small = photos(400), photos(RESIZE)
    transform, who = released()
    rng = np.random.default_rng(0)

    def theirs(data):
        transform(Image.open(io.BytesIO(data)).convert("RGB"))

    def ours(data):
        images.random_crop(images.decode(data), RESIZE, SIZE, rng)

    def part(data):
        images.random_resized_crop(images.decode(data), SIZE, 0.5, rng)

    def coloured(data):
        images.jitter(images.random_crop(images.decode(data), RESIZE, SIZE, rng), 0.4, rng)

    ways = {
        f"released: {who}, float32": (theirs, large),
        "here": (ours, large),
        "here, min_area=0.5": (part, large),
        "here, prepared (shorter side 256)": (ours, small),
        "here, prepared, jitter=0.4": (coloured, small),
        f"released, prepared: {who}": (theirs, small),
    }
    best = {name: [float("inf")] * len(PHOTOS) for name in ways}
    for _ in range(rounds):
        for name, (way, data) in ways.items():
            for number, content in enumerate(data):
                began = time.process_time()
                way(content)
                best[name][number] = min(best[name][number], time.process_time() - began)
    first = sum(next(iter(best.values())))
    lines = ["| | ms an image | times as fast |", "|---|---|---|"]
    for name, seconds in best.items():
        mean = 1e3 * sum(seconds) / len(seconds)
        lines.append(f"| {name} | {mean:.2f} | {first / sum(seconds):.1f} |")
    return "\n".join(lines)


class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The photographs, many times over."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        small = photos(RESIZE)
        for number in range(2_000):
            yield number, {"image": small[number % len(small)], "label": number}


def soak(count: int) -> None:
    """Reads `count` images through the pipeline, and prints what memory the process has."""
    with tempfile.TemporaryDirectory() as folder:
        write(Photos(data_dir=folder))
        source = open_dataset(folder, "photos", "train")
        batches = pipeline.train_batches(
            source, pipeline.Labels(), seed=0, batch_size=100, image_size=SIZE, resize=RESIZE,
            flip=True, start_step=0,
        )  # fmt: skip
        began, every = time.monotonic(), max(1, count // 10)
        for number, _ in enumerate(batches, start=1):
            read = 100 * number
            if read % every == 0:
                now = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
                now *= resource.getpagesize() / 2**20
                rate = read / (time.monotonic() - began)
                print(f"{read:,} images, {rate:.0f}/s, {now:.0f} MiB", flush=True)
            if read >= count:
                batches.close()
                return


def main() -> None:
    """Prints the table, or soaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--soak", type=int, default=0)
    options = parser.parse_args()
    if options.soak:
        soak(options.soak)
    else:
        print(table(options.rounds))


if __name__ == "__main__":
    main()
