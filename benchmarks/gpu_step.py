"""One GPU: its ceilings, transport with loss and gradients, and the whole training step.

    python -m benchmarks.gpu_step

prints a table, and writes gpu_step.json into $OUT (or the current directory). Beside every part
stands the same in PyTorch on the same GPU: the released algorithm, and a training step with
autocast to bfloat16, channels_last, fused optimiser and torch.compile. Needs jax, flax, optax,
torch, torchvision and transformers, and no network: weights and inputs are random. `--only ROW ...`
runs some rows, such as step_here_512; `--trace FOLDER` says where the time of our steps goes, and
needs rich and orbax-checkpoint, too.

Every row is a process of its own. First all compile at once and fill the caches of compiled
programs, for at most half of `--seconds`; then one after the other is timed alone, for at most a
third. A row that fails says so, and the others go on. Ours are compiled without XLA's Triton
products, which take minutes to try out, unless XLA_FLAGS is set.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

D, TOKENS, PIXELS, VOCABULARY = 768, 60, 224, 30_522
BATCHES = (4096, 8192, 16384, 32768)
STEPS = (256, 512)
TINY = {"batches": (64, 128), "steps": (8,), "pixels": 32, "side": 256}
FULL = {"batches": BATCHES, "steps": STEPS, "pixels": PIXELS, "side": 8192}
COLUMNS = "part", "batch", "how", "ms", "rate", "MB", "note"


def median_ms(work, wait, repeats: int = 3, inner: int = 5, seconds: float = 8.0) -> float:
    """Milliseconds of one call: the median over repeats of `inner` calls each, after a warm-up."""
    wait(work())
    began = time.perf_counter()
    wait(work())
    one = time.perf_counter() - began
    inner = max(1, min(inner, int(seconds / repeats / max(one, 1e-6))))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(inner):
            result = work()
        wait(result)
        times.append((time.perf_counter() - began) / inner)
    return 1e3 * sorted(times)[repeats // 2]


# Here -------------------------------------------------------------------------------------------


def compiled(f, *arguments, **jit):
    """The program, and the megabytes of its arguments, results and temporaries."""
    import jax

    program = jax.jit(f, **jit).lower(*arguments).compile()
    m = program.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return program, (held - m.alias_size_in_bytes) / 1e6


def ceilings(sizes, warm):
    """Copy rate, and rates of matrix products."""
    import jax
    import jax.numpy as jnp

    side = sizes["side"]
    x = jnp.ones((side, side), jnp.float32)
    add, _ = compiled(lambda x: x + 1, x)
    products = {
        "matmul bfloat16": (x.astype(jnp.bfloat16), None),
        "matmul float32": (x, "highest"),
        "matmul TF32": (x, "default"),
    }
    programs = {
        name: compiled(lambda x, p=precision: jnp.matmul(x, x, precision=p), x)[0]
        for name, (x, precision) in products.items()
    }
    if warm:
        return
    ms = median_ms(lambda: add(x), jax.block_until_ready)
    rate = f"{2 * x.nbytes / ms / 1e6:,.0f} GB/s"
    yield {"part": "ceiling", "how": "copy", "ms": ms, "rate": rate}
    for name, program in programs.items():
        of = products[name][0]
        ms = median_ms(lambda program=program, of=of: program(of), jax.block_until_ready)
        rate = f"{2 * side**3 / ms / 1e9:,.0f} TFLOP/s"
        yield {"part": "ceiling", "how": name, "ms": ms, "rate": rate}


def transport_here(sizes, warm):
    """Targets, loss and gradients in the three forms."""
    import jax
    import jax.numpy as jnp

    from otter_jax import mesh as meshes
    from otter_jax import panels, step
    from otter_jax.objective import METHODS

    mesh, otter = meshes.make_mesh(1), METHODS["otter"]
    for B in sizes["batches"]:
        x = jax.random.normal(jax.random.key(0), (4, B, D))
        x = list(x / jnp.linalg.norm(x, axis=-1, keepdims=True))
        x.append({"pairs": jnp.float32(3.9), "teacher": jnp.float32(3.9)})
        for form in panels.FORMS:

            def part(x, y, v, t, scales, form=form):
                where = {"mesh": mesh, "form": form}
                targets, numbers = step.teach(otter, v, t, **where)

                def loss(x, y, scales):
                    return step.matching_loss(otter, x, y, targets, scales, **where)

                found = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
                return found(x, y, scales), numbers

            row = {"part": "transport", "batch": B, "how": form}
            try:
                program, row["MB"] = compiled(part, *x)
                if warm:
                    continue
                row["note"] = f"loss {float(program(*x)[0][0][0]):.4f}"
                row["ms"] = median_ms(
                    lambda program=program, x=x: program(*x), jax.block_until_ready
                )
            except Exception as error:
                row["note"] = f"{type(error).__name__}: {error}"[:120]
            yield row


def step_here(sizes, warm, B):
    """The training step of `step.train_step`, method OTTER, encoders in bfloat16."""
    import jax
    import jax.numpy as jnp

    from otter_jax import mesh as meshes
    from otter_jax import optimizer, step
    from otter_jax.models.bert import Bert, BertConfig
    from otter_jax.models.resnet import RESNETS, ResNet
    from otter_jax.models.towers import Towers
    from otter_jax.objective import METHODS

    tiny = sizes is TINY
    mesh = meshes.make_mesh(1)
    config = BertConfig(num_hidden_layers=1) if tiny else BertConfig()
    model = Towers(
        img=ResNet(**RESNETS["resnet18" if tiny else "resnet50"], dtype=jnp.bfloat16),
        txt=Bert(config, dtype=jnp.bfloat16),
        dim=D,
        txt_width=D,
        mean=(127.0,) * 3,
        std=(64.0,) * 3,
    )
    pixels = sizes["pixels"]
    batch = {
        "image": jnp.zeros((B, pixels, pixels, 3), jnp.uint8),
        "token_ids": jnp.ones((B, TOKENS), jnp.int32),
        "mask": jnp.ones((B, TOKENS), bool),
    }
    captions = {k: v[:1] for k, v in batch.items() if k != "image"}
    tx = optimizer.make_optimizer("sgd", lambda _: 3e-3)

    def create(key):
        variables = model.init(key, batch["image"][:1], captions, train=False)
        return step.create_state(variables["params"], variables["batch_stats"], tx)

    def one(state, batch):
        options = {"model": model, "tx": tx, "objective": METHODS["otter"], "mesh": mesh}
        return step.train_step(state, batch, key=jax.random.key(1), form="cached", **options)

    like = jax.eval_shape(create, jax.random.key(0))
    program, megabytes = compiled(one, like, batch, donate_argnums=0)
    if warm:
        return
    state = jax.jit(create)(jax.random.key(0))
    key = jax.random.key(2)
    batch["image"] = jax.random.randint(key, batch["image"].shape, 0, 256).astype(jnp.uint8)
    batch["token_ids"] = jax.random.randint(key, (B, TOKENS), 1, VOCABULARY)
    held = [state]

    def work():
        held[0], metrics = program(held[0], batch)
        return metrics["loss"]

    ms = median_ms(work, jax.block_until_ready, inner=10)
    flops = (program.cost_analysis() or {}).get("flops", 0)
    note = f"loss {float(work()):.3f}; {flops / ms / 1e9:,.0f} TFLOP/s by XLA's count"
    rate = f"{1e3 * B / ms:,.0f} pairs/s"
    yield {"part": "step", "batch": B, "how": "here", "ms": ms, "rate": rate, "MB": megabytes} | {
        "note": note
    }
    if folder := os.environ["ROW_TRACE"]:
        trace(work, program, pathlib.Path(folder) / str(B))


def trace(work, program, folder):
    """Traces three calls of the work; writes the program, and where the calls' time went."""
    import jax

    from otter_jax.training import profiling

    with jax.profiler.trace(folder), jax.profiler.TraceAnnotation(profiling.STEPS):
        for _ in range(3):
            last = work()
        jax.block_until_ready(last)
    text = program.as_text()
    (folder / "program.txt").write_text(text)
    found = next(folder.rglob("*.xplane.pb"))
    lines, window = profiling.lines_of(
        jax.profiler.ProfileData.from_file(str(found)), profiling.parts_of(text)
    )
    table = profiling.table(profiling.shares(lines, window or (0, 0)), profiling.Span(1, 3))
    (folder / profiling.TABLE).write_text(f"{table}\n")


# PyTorch ----------------------------------------------------------------------------------------


def device_of_torch():
    """The GPU if there is one, and what waits for it."""
    import torch

    if torch.cuda.is_available():
        return "cuda", lambda _: torch.cuda.synchronize()
    return "cpu", lambda _: None


def peak(device) -> float:
    """Megabytes allocated at most since the last reset."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0


def transport_torch(sizes, warm):
    """The released algorithm, as it is written."""
    import torch

    from benchmarks import released

    device, wait = device_of_torch()
    for B in sizes["batches"]:
        if warm:
            return
        torch.manual_seed(0)
        row = {"part": "transport", "batch": B, "how": "released, PyTorch"}
        try:
            unit = torch.nn.functional.normalize
            x, y, v, t = (unit(torch.randn(B, D, device=device), dim=1) for _ in range(4))
            leaves = [x.requires_grad_(), y.requires_grad_()]
            leaves += [torch.tensor(3.9, device=device, requires_grad=True) for _ in range(2)]

            def work(leaves=leaves, v=v, t=t):
                found = released.loss(*leaves[:2], released.teach(v, t), leaves[2:])
                torch.autograd.grad(found, leaves)
                return found

            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            row["note"] = f"loss {float(work().detach()):.4f}"
            row["MB"] = peak(device)
            row["ms"] = median_ms(work, wait)
        except Exception as error:
            row["note"] = f"{type(error).__name__}: {error}"[:120]
        leaves = x = y = v = t = work = None
        if device == "cuda":
            torch.cuda.empty_cache()
        yield row


def step_torch(sizes, warm, B):
    """The same step in PyTorch: autocast to bfloat16, channels_last, torch.compile, fused SGD."""
    import copy

    import torch
    import torchvision
    import transformers

    from benchmarks import released

    device, wait = device_of_torch()
    tiny = sizes is TINY

    class Towers(torch.nn.Module):
        """Embeds images and captions of so many tokens each."""

        def __init__(self):
            super().__init__()
            make = torchvision.models.resnet18 if tiny else torchvision.models.resnet50
            self.img = make(num_classes=D)
            config = transformers.BertConfig(**({"num_hidden_layers": 1} if tiny else {}))
            self.txt = transformers.BertModel(config, add_pooling_layer=False)

        def forward(self, image, token_ids, mask):
            pixels = (image.float() - 127) / 64
            img = self.img(pixels.contiguous(memory_format=torch.channels_last)).float()
            hidden = self.txt(input_ids=token_ids, attention_mask=mask).last_hidden_state.float()
            weights = mask[..., None].float()
            txt = (hidden * weights).sum(1) / weights.sum(1)
            unit = torch.nn.functional.normalize
            return unit(img, dim=1), unit(txt, dim=1)

    torch.manual_seed(0)
    student = Towers().to(device, memory_format=torch.channels_last).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    scales = [torch.nn.Parameter(torch.tensor(3.9, device=device)) for _ in range(2)]
    parameters = [*student.parameters(), *scales]
    fused = {"fused": True} if device == "cuda" else {}
    tx = torch.optim.SGD(parameters, lr=3e-3, momentum=0.9, **fused)
    see, look = (model if tiny else torch.compile(model) for model in (student, teacher))
    pixels = sizes["pixels"]
    shape = (B, 3, pixels, pixels)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    ids = torch.randint(1, VOCABULARY, (B, TOKENS), device=device)
    batch = image, ids, torch.ones_like(ids)
    averages, current = list(teacher.parameters()), list(student.parameters())

    def work():
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                seen = look(*batch)
            found = see(*batch)
        targets = released.teach(*seen)
        loss = released.loss(*found, targets, scales)
        tx.zero_grad(set_to_none=True)
        loss.backward()
        tx.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, current, 1e-3)
        return loss.detach()

    wait(work())
    if warm:
        return
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms = median_ms(work, wait, inner=10)
    note, rate = f"loss {float(work()):.3f}", f"{1e3 * B / ms:,.0f} pairs/s"
    row = {"part": "step", "batch": B, "how": "PyTorch, compiled", "ms": ms, "rate": rate}
    yield row | {"MB": peak(device), "note": note}


# The rows ---------------------------------------------------------------------------------------


def rows_of(sizes) -> dict:
    """Every row's function and arguments by its name, in the order of the table."""
    rows = {
        "ceilings": (ceilings,),
        "transport_here": (transport_here,),
        "transport_torch": (transport_torch,),
    }
    for B in sizes["steps"]:
        rows |= {f"step_here_{B}": (step_here, B), f"step_torch_{B}": (step_torch, B)}
    return rows


def one_row(name: str, sizes, warm: bool) -> None:
    """Runs a row in this process; prints its results as lines of JSON."""
    if "torch" not in name:
        import jax

        jax.config.update("jax_compilation_cache_dir", os.environ["ROW_CACHE"] + "/jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    work, *arguments = rows_of(sizes)[name]
    for row in work(sizes, warm, *arguments) or ():
        print("ROW " + json.dumps(row), flush=True)


def machine(python: str) -> str:
    """Devices and versions, asked of processes of their own."""
    here = "import jax; d=jax.devices()[0]; print(d.device_kind, '| jax', jax.__version__)"
    there = "import torch, transformers as t; print('torch', torch.__version__, t.__version__)"
    said = []
    for interpreter, code in ((sys.executable, here), (python, there)):
        found = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
        said.append(found.stdout.strip().rpartition("\n")[2] or found.stderr[-200:])
    return " | ".join(said)


def start(name: str, options, cache: str, *more: str) -> subprocess.Popen:
    """Starts the process of a row."""
    python = options.torch_python if "torch" in name else sys.executable
    command = [python, "-m", "benchmarks.gpu_step", "--row", name, *more]
    command += ["--tiny"] if options.tiny else []
    environment = (
        {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
        | os.environ
        | {
            "ROW_CACHE": cache,
            "ROW_TRACE": options.trace,
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(name: str, process: subprocess.Popen, seconds: float) -> list[dict]:
    """Waits for a row's process; returns its results, or the end of what it complained of."""
    try:
        out, error = process.communicate(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        error += f"\nstopped after {seconds:.0f} s"
    found = [json.loads(line[4:]) for line in out.splitlines() if line.startswith("ROW ")]
    if process.returncode:
        last = error.strip().splitlines()[-1:] or ["nothing said"]
        print(error[-1500:], file=sys.stderr)
        found.append({"part": name, "note": f"failed: {last[0][:160]}"})
    return found


def cell(value) -> str:
    """A value of the table as text."""
    if isinstance(value, float):
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


def main() -> None:
    """Runs all rows, prints the table, writes the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU does in a minute")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--seconds", type=float, default=400, help="stop starting rows after that")
    parser.add_argument("--only", nargs="+", help="rows, by their names")
    parser.add_argument(
        "--trace", default="", help="folder for traces of our steps, and where time goes"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = TINY if options.tiny else FULL
    if options.row:
        return one_row(options.row, sizes, options.warm)

    known = list(rows_of(sizes))
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only: no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    began = time.monotonic()
    found = []
    title = machine(options.torch_python)
    print(title, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        rows = options.only or known
        if not options.tiny:  # compiling: all at once
            processes = {name: start(name, options, cache, "--warm") for name in rows}
            for name, process in processes.items():
                finish(name, process, options.seconds / 2 - (time.monotonic() - began))
            print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)
        for name in rows:
            left = options.seconds - (time.monotonic() - began)
            if left < 5:
                found.append({"part": name, "note": "no time left"})
                continue
            found += finish(name, start(name, options, cache), min(left, options.seconds / 3))
            print(f"{name} after {time.monotonic() - began:.0f} s", flush=True)
    out = pathlib.Path(os.environ.get("OUT", ".")) / "gpu_step.json"
    out.write_text(json.dumps({"machine": title, "rows": found}, indent=1))
    print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for row in found:
        print(f"| {' | '.join(cell(row.get(name, '')) for name in COLUMNS)} |")
    print(f"\n{title} (transformers); {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
