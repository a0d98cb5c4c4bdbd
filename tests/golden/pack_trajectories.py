"""Packs what test_trajectory.py needs of a folder of reference runs of the released code.

    python tests/golden/pack_trajectories.py GOLDEN_DIR

Names are the released state dicts', without "student."; losses stay weighted by alpha and
1 - alpha. Every file stays below 900 kB.
"""

import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
METHODS = ("infonce", "ls", "kd", "kd_vv0_tt0", "otter")
TWO_PROCESSES = ("infonce", "ls", "kd", "otter", "otter_intended_diag")
EMBEDDINGS = ("s_img_emb", "s_txt_emb", "t_img_emb", "t_txt_emb")
CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073))
CLIP_STD = np.array((0.26862954, 0.26130258, 0.27577711))
STEPS = 10
LENGTH = 60  # tokens to which every caption is padded
THIN = 16  # of a long tensor every so many values are kept


def main(golden):
    pack_start(golden / "traj/init")
    pack_batches(np.load(golden / "traj/batches.npz"))
    for method in METHODS:
        exact = dict(np.load(golden / f"traj/{method}/metrics_float64.npz"))
        names = np.load(golden / f"traj/{method}/metrics.npz")["grad_names"]
        stats = np.load(golden / f"traj/{method}/final_stats.npz")
        save(f"traj_{method}", metrics(exact, names) | statistics(stats))
    pack_elements(golden / "traj/otter")
    pack_noise(golden / "traj")
    for run in TWO_PROCESSES:
        file = golden / "dist2" / run.replace("otter", "otter_syncbn")
        file = file if run.startswith("otter") else file.with_name(f"{run}_syncbn")
        ranks = dict(np.load(f"{file}.npz"))
        stats = np.load(f"{file}.final_stats.npz")
        save(f"traj_dist2_{run}", metrics(joined(ranks), ranks["grad_names"]) | statistics(stats))
    pack_real_encoders(np.load(golden / "full_otter_recipe.npz"))


def pack_start(folder):
    image = load_file(folder / "image_encoder.safetensors")
    text = load_file(folder / "text_encoder/model.safetensors")
    weights = {f"image_encoder.model.{k}": v for k, v in image.items()}
    weights |= {f"text_encoder.model.{k}": v for k, v in text.items()}
    weights = {k: v for k, v in weights.items() if used(k)}
    by_size = sorted(weights.items(), key=lambda item: item[1].size)
    for part in range(2):
        save(f"traj_start_{part}", dict(by_size[part::2]))


def used(name):
    """Batch norm's counters and BERT's pooler take no part."""
    return not name.endswith("num_batches_tracked") and ".pooler." not in name


def pack_batches(batches):
    packed = {}
    for step in range(STEPS):
        pixels = batches[f"images_{step}"].transpose(0, 2, 3, 1)
        image = np.round((pixels * CLIP_STD + CLIP_MEAN) * 255).astype(np.uint8)
        packed[f"image_{step}"] = differences(image)
        np.testing.assert_array_equal(summed(packed[f"image_{step}"]), image)
        np.testing.assert_array_equal(normalised(image), pixels)
    half = STEPS // 2
    for part in range(2):
        steps = range(part * half, (part + 1) * half)
        save(f"traj_images_{part}", {f"image_{s}": packed[f"image_{s}"] for s in steps})

    token_ids = np.zeros((STEPS, 16, LENGTH), np.int16)
    lengths = np.zeros((STEPS, 16), np.int16)
    for step in range(STEPS):
        ids, mask = batches[f"input_ids_{step}"], batches[f"attention_mask_{step}"]
        lengths[step] = mask.sum(1)
        np.testing.assert_array_equal(mask, np.arange(mask.shape[1]) < lengths[step][:, None])
        token_ids[step, :, : ids.shape[1]] = ids
    save("traj_texts", {"token_ids": token_ids, "lengths": lengths})


def differences(image):
    """Of neighbours, mod 256: they compress where the images themselves do not."""
    return np.diff(np.diff(image, axis=2, prepend=np.uint8(0)), axis=1, prepend=np.uint8(0))


def summed(differences):
    """The images again."""
    return differences.cumsum(axis=1, dtype=np.uint8).cumsum(axis=2, dtype=np.uint8)


def normalised(image):
    """The pixels that the released code saw, to the last bit."""
    return ((image / 255 - CLIP_MEAN) / CLIP_STD).astype(np.float32)


def metrics(run, grad_names):
    """Losses, temperatures, every second coordinate of the embeddings, targets, gradients."""
    keep = {k: v for k, v in run.items() if k.startswith(("loss_", "T_")) or k.endswith("_target")}
    keep |= {k: run[k][..., ::2] for k in EMBEDDINGS if k in run}
    names = [name.removeprefix("student.") for name in grad_names]
    some = [used(name) for name in names]
    return keep | {
        "grad_names": np.array(names)[some],
        "grad_norms": run["grad_norms"][:, some],
    }


def statistics(stats):
    """Of every tensor of the final state: its norm, sum and first eight values."""
    names = [name.removeprefix("student.") for name in stats["names"]]
    some = [used(name) for name in names]
    assert list(stats) == ["names", "l2", "sum", "first8"]
    return {
        "final_names": np.array(names)[some],
        **{f"final_{k}": stats[k][some] for k in ("l2", "sum", "first8")},
    }


def joined(ranks):
    """Two processes as one: means of what each averaged over its rows, rows one after another."""
    run = {}
    for name, value in ranks.items():
        if name.startswith(("loss_", "T_", "grad_norms")):
            if not name.startswith("loss_"):
                np.testing.assert_array_equal(value[0], value[1])
            run[name] = value.mean(axis=0)
        elif name.endswith(("_emb", "_target")):
            run[name] = np.concatenate(list(value), axis=1)
    return run


def pack_elements(folder):
    """OTTER alone, value by value: first gradient, and the weights after ten float64 steps."""
    packed = {}
    for key, file in {
        "gradient": "grads_step1.safetensors",
        "final": "student_final_from_float64.safetensors",
    }.items():
        tensors = {k: v for k, v in sorted(load_file(folder / file).items()) if used(k)}
        packed[f"{key}_names"] = np.array(list(tensors))
        packed[key] = np.concatenate([thin(v) for v in tensors.values()])
    save("traj_otter_elements", packed)


def thin(tensor):
    """Every THIN-th value, so at least the first."""
    return tensor.ravel()[::THIN]


def pack_noise(folder):
    """The largest distance up to each step of any float32 run of the release from float64."""
    runs = json.loads((folder / "noise_floor.json").read_text())
    runs = [run for method in runs.values() for run in method.values() if isinstance(run, dict)]

    def worst(*keys):
        return np.max([run[key] for run in runs for key in keys if key in run], axis=0)

    target, gradient = [], []
    for method in METHODS:
        single = np.load(folder / method / "metrics.npz")
        double = np.load(folder / method / "metrics_float64.npz")
        # A bias of keys shifts all scores of a query alike: its gradient is 0 but for rounding.
        some = [used(k) and not k.endswith("key.bias") for k in single["grad_names"]]
        a, b = single["grad_norms"][:, some], double["grad_norms"][:, some]
        gradient.append(np.max(np.abs(a / b - 1), axis=1))
        for key in {"img_target", "txt_target"} & set(single):
            target.append(np.abs(single[key] - double[key]).max(axis=(1, 2)))
    noise = {
        "loss": worst("loss_contrastive", "loss_distillation", "loss_total"),
        "log_scale": worst("T_c", "T_s")[1:],
        "embedding": worst("emb_max_abs_per_step"),
        "target": np.max(target, axis=0),
        "gradient": np.max(gradient, axis=0),  # of a norm, relative
    }
    noise = {name: np.maximum.accumulate(value) for name, value in noise.items()}
    save("traj_noise", noise)
    for name, value in noise.items():
        print(f"{name:10s}", np.array2string(value, precision=1, max_line_width=200))


def pack_real_encoders(run):
    """ResNet-50 and BERT-base: two steps."""
    elements = {k: thin(v) for k, v in run.items() if k.startswith("grad1|")}
    elements = {k.replace("student.", ""): v for k, v in elements.items()}
    texts = {"token_ids": run["input_ids"].astype(np.int32), "mask": run["attention_mask"] > 0}
    save("full_otter_recipe", metrics(dict(run), run["grad_names"]) | elements | texts)


def save(name, arrays):
    file = HERE / f"{name}.npz"
    np.savez_compressed(file, **arrays)
    size = file.stat().st_size
    assert size < 900_000, (name, size)
    print(f"{size:7d} {file.name}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
