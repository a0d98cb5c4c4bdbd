"""Encoders and the whole training step on a CPU, beside PyTorch (timm, transformers).

    python -m benchmarks.encoders --peers PYTHON [--rows NAME ...] [--batch 32] [--rounds 1]

PYTHON is an interpreter with torch, timm and transformers; without it, this one. Encoders have
random weights; images are 224 pixels wide, texts 32 rows of 64 tokens. "forward" is in evaluation
mode; "gradient" is forward and backward, of all parameters, in training mode (batch norms by the
batch, no dropout). The step is that of ResNet-50 with BERT-base at batch 16: both towers of the
student with gradients, those of its teacher, transport, losses, SGD and the teacher's average, with
dropout. Its captions have lengths like CC3M's, which PyTorch pads to the longest, as released; here
they are packed, or padded the same ("same tokens").

All in float32 at full precision, on all cores that the process may use (`taskset -c 1` for one).
PyTorch's convolutional networks are in channels_last, its faster format here; ours keep the memory
that they free, as training and evaluation do (`otter_jax/run/heap.py`). Every measurement is a
process of its own, and both sides take turns. Seconds are those of the process on all cores and
those of the clock, of the calls after the first the least; ratios are PyTorch's over ours.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

from otter_jax.run import heap

PIXELS, TEXTS = 224, (32, 64)  # texts: rows, tokens of each
VOCABULARY, D = 30522, 768
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
NETS = ("resnet50", "efficientnet_lite0", "efficientnet_b0", "vit_small_patch16_224")
ROWS = (*NETS, "minilm", "step")
PAIRS, LIMIT = 16, 60  # of a step, and the most tokens of a caption


def images(B: int) -> np.ndarray:
    """Random pixels, 0..255."""
    shape = (B, PIXELS, PIXELS, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def lengths(count: int) -> np.ndarray:
    """Of captions, in tokens: like CC3M's in word pieces."""
    drawn = np.random.default_rng(0).lognormal(np.log(13.5), 0.35, count)
    return np.clip(np.rint(drawn), 5, LIMIT).astype(np.int32)


def captions() -> dict[str, np.ndarray]:
    """A batch of captions, padded to the longest."""
    tokens = lengths(PAIRS)
    shape = PAIRS, tokens.max()
    ids = np.random.default_rng(1).integers(1000, VOCABULARY, shape).astype(np.int32)
    return {"token_ids": ids, "mask": np.arange(tokens.max()) < tokens[:, None]}


# Here: each returns what to call, by name, and what to say ----------------------------------------


def encoder_here(name, B):
    """An encoder of this package."""
    import jax
    import jax.numpy as jnp

    from otter_jax.models.bert import Bert, BertConfig
    from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
    from otter_jax.models.resnet import RESNETS, ResNet
    from otter_jax.models.vit import VITS, ViT

    if name == "minilm":
        model = Bert(BertConfig(**MINILM).with_dropout(0.0))
        inputs = jnp.ones(TEXTS, jnp.int32), jnp.ones(TEXTS, bool)
    else:
        kinds = {ResNet: RESNETS, EfficientNet: EFFICIENTNETS, ViT: VITS}
        kind, known = next((k, v) for k, v in kinds.items() if name in v)
        model = kind(**known[name])
        inputs = ((jnp.array(images(B), jnp.float32) - 127) / 64,)
    create = jax.jit(lambda key: model.init(key, *(x[:1] for x in inputs), train=False))
    variables = create(jax.random.key(0))
    params = variables.pop("params")

    @jax.jit
    def forward(params, others, *inputs):
        return model.apply({"params": params, **others}, *inputs, train=False)

    @jax.jit
    def gradient(params, others, *inputs):
        def loss(params):
            both = {"params": params, **others}
            y, updated = model.apply(both, *inputs, train=True, mutable=["batch_stats"])
            return jnp.square(y).mean(), updated

        return jax.grad(loss, has_aux=True)(params)

    count = sum(x.size for x in jax.tree.leaves(params))
    called = {
        "forward": lambda: jax.block_until_ready(forward(params, variables, *inputs)),
        "gradient": lambda: jax.block_until_ready(gradient(params, variables, *inputs)),
    }
    return called, f"{count / 1e6:.1f} M parameters, jax {jax.__version__}"


def step_here():
    """The step of `step.train_step`, packed and padded."""
    import jax
    import jax.numpy as jnp

    from otter_jax import mesh as meshes
    from otter_jax import optimizer, step
    from otter_jax.data.packing import Packed
    from otter_jax.models.bert import Bert, BertConfig
    from otter_jax.models.resnet import RESNETS, ResNet
    from otter_jax.models.towers import Towers
    from otter_jax.objective import METHODS
    from otter_jax.training.compiling import jit_step, shapes_of

    img, txt = ResNet(**RESNETS["resnet50"]), Bert(BertConfig())
    model = Towers(img, txt, D, D, mean=(127.0,) * 3, std=(64.0,) * 3)
    padded = captions()
    whole = {k: np.pad(v, ((0, 0), (0, LIMIT - v.shape[1]))) for k, v in padded.items()}
    limit = SimpleNamespace(max_tokens=LIMIT, pad_id=0)  # all that packing asks a tokenizer for
    packing = Packed.of(limit, lengths(10_000), per_group=PAIRS, longest=512)
    packed = packing.collate(whole)
    packed.pop("cut")
    tx = optimizer.make_optimizer("sgd", lambda _: 3e-3)
    picture, mesh = images(PAIRS), meshes.make_mesh(1)

    def create(key):
        short = {k: jnp.array(v[:1]) for k, v in padded.items()}
        variables = model.init(key, picture[:1], short, train=False)
        return step.create_state(variables["params"], variables["batch_stats"], tx)

    def one(state, batch):
        options = {"model": model, "tx": tx, "objective": METHODS["otter"], "form": "cached"}
        return step.train_step(state, batch, key=jax.random.key(1), mesh=mesh, **options)

    held = [jax.jit(create)(jax.random.key(0))]

    def call(texts):
        batch = meshes.put_batch({"image": picture, **texts}, mesh)
        # Ahead of its use, as in training: the first call would compile for the state as created,
        # and the second again, for the state that a step returns.
        program = jit_step(one, mesh).lower(*shapes_of((held[0], batch))).compile()

        def work():
            held[0], metrics = program(held[0], batch)
            jax.block_until_ready(metrics)

        return work

    rows, length = packing.rows, packing.length
    called = {"step": call(packed), "same tokens": call(padded)}
    return called, f"{rows} x {length} tokens packed, jax {jax.__version__}"


# PyTorch -----------------------------------------------------------------------------------------


def encoder_torch(name, B):
    """The same encoder by timm or transformers."""
    import timm
    import torch
    import transformers

    if name == "minilm":
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = transformers.BertConfig(**MINILM, **none, num_attention_heads=12)
        model = transformers.BertModel(config, add_pooling_layer=False)
        inputs = torch.ones(TEXTS, dtype=torch.long), torch.ones(TEXTS, dtype=torch.long)
    else:
        model = timm.create_model(name, num_classes=0)
        pixels = ((torch.from_numpy(images(B)).float() - 127) / 64).permute(0, 3, 1, 2)
        inputs = (pixels.contiguous(),)
        if "vit" not in name:
            model = model.to(memory_format=torch.channels_last)
            inputs = (pixels.contiguous(memory_format=torch.channels_last),)

    def read():
        found = model(*inputs)
        return found.last_hidden_state if name == "minilm" else found

    def forward():
        model.eval()
        with torch.inference_mode():
            read()

    def gradient():
        model.train()
        model.zero_grad()
        read().square().mean().backward()

    count = sum(x.numel() for x in model.parameters())
    said = f"{count / 1e6:.1f} M parameters, torch {torch.__version__}"
    return {"forward": forward, "gradient": gradient}, said


def step_torch():
    """The same step by timm, transformers and the released algorithm."""
    import copy

    import timm
    import torch
    import transformers

    from benchmarks import released

    class Towers(torch.nn.Module):
        """Embeds images and padded captions."""

        def __init__(self):
            super().__init__()
            self.img = timm.create_model("resnet50", num_classes=D)
            self.txt = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)

        def forward(self, image, token_ids, mask):
            img = self.img((image.float() - 127) / 64)
            hidden = self.txt(input_ids=token_ids, attention_mask=mask).last_hidden_state
            weights = mask[..., None].float()
            txt = (hidden * weights).sum(1) / weights.sum(1)
            unit = torch.nn.functional.normalize
            return unit(img, dim=1), unit(txt, dim=1)

    student = Towers().to(memory_format=torch.channels_last).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    scales = [torch.nn.Parameter(torch.tensor(3.9)) for _ in range(2)]
    tx = torch.optim.SGD([*student.parameters(), *scales], lr=3e-3, momentum=0.9)
    image = torch.from_numpy(images(PAIRS)).permute(0, 3, 1, 2)
    texts = {k: torch.from_numpy(v).long() for k, v in captions().items()}
    batch = image.contiguous(memory_format=torch.channels_last), *texts.values()
    averages, current = list(teacher.parameters()), list(student.parameters())

    def work():
        with torch.no_grad():
            seen = teacher(*batch)
        loss = released.loss(*student(*batch), released.teach(*seen), scales)
        tx.zero_grad()
        loss.backward()
        tx.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, current, 1e-3)

    rows, length = texts["token_ids"].shape
    return {"step": work}, f"{rows} x {length} tokens padded, torch {torch.__version__}"


# Measuring ---------------------------------------------------------------------------------------


def measure(side: str, row: str, B: int, calls: int) -> dict:
    """CPU and wall seconds of everything that one side can do in a row, in this process."""
    if side == "torch":
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        called, note = step_torch() if row == "step" else encoder_torch(row, B)
    else:
        heap.share_and_keep()
        called, note = step_here() if row == "step" else encoder_here(row, B)
    found = {"note": note}
    for name, work in called.items():
        work()
        taken = []
        for _ in range(calls):
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        found[name] = [min(each) for each in zip(*taken, strict=True)]
    return found


def run(python: str, *arguments: str) -> dict:
    """`measure`, in a process of its own."""
    command = [python, "-m", "benchmarks.encoders", "--one", *arguments]
    found = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{found.stderr[-2000:]}")
    return json.loads(lines[-1])


def table(row: str, options: argparse.Namespace) -> None:
    """Prints the lines of one row."""
    found: dict[str, list[dict]] = {"here": [], "torch": []}
    for _ in range(options.rounds):
        for side, python in (("here", sys.executable), ("torch", options.peers)):
            found[side].append(run(python, side, row, str(options.batch), str(options.calls)))
    notes = "; ".join(each[0]["note"] for each in found.values())
    for name in (key for key in found["here"][0] if key != "note"):
        peer = name if name in found["torch"][0] else "step"
        cpu, wall, cpu_torch, wall_torch = (
            statistics.median(each[key][which] for each in found[side])
            for side, key in (("here", name), ("torch", peer))
            for which in (0, 1)
        )
        cells = f"{cpu:.2f}", f"{cpu_torch:.2f}", f"**{cpu_torch / cpu:.2f}**"
        cells += f"{wall:.2f}", f"{wall_torch:.2f}", f"**{wall_torch / wall:.2f}**"
        print(f"| {row} | {name} | {' | '.join(cells)} | {notes} |", flush=True)
        notes = ""


def main() -> None:
    """Prints machine, load and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--calls", type=int, default=2, help="after the first, of each program")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", default=sys.executable, help="interpreter with torch and timm")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, row, batch, calls = options.one
        print(json.dumps(measure(side, row, int(batch), int(calls))))
        return
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, batch {options.batch}, float32, load {load:.1f}\n")
    print("| | | CPU s | PyTorch | ratio | wall s | PyTorch | ratio | |")
    print("|---" * 9 + "|")
    for row in options.rows:
        table(row, options)
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
