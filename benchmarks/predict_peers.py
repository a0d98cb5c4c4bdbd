"""The programs beside which `benchmarks.predict` measures: open_clip and transformers.

    PYTHON predict_peers.py --write FOLDER [--small]
    PYTHON predict_peers.py --work open_clip|pipeline --model FOLDER --folder PICTURES ...

Is started by `benchmarks.predict`, by an interpreter that has PyTorch, open_clip and transformers.
"""

import argparse
import json
import pathlib
import resource
import sys
import time

import open_clip
import torch
import transformers
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file

BATCH = 64
TEMPLATE = "a photo of {}."


def model_cfg(small: bool) -> dict:
    """ViT-B/32 as open_clip describes it, or one of two layers."""
    made = open_clip.get_model_config("ViT-B-32-quickgelu")
    if small:
        made["embed_dim"] = 64
        made["vision_cfg"] |= {"layers": 2, "width": 64, "image_size": 64, "head_width": 32}
        made["text_cfg"] |= {"layers": 2, "width": 64, "heads": 2}
    return made


def write(folder: pathlib.Path, small: bool) -> None:
    """Writes one model of random weights as open_clip and as transformers save it."""
    torch.manual_seed(0)
    cfg = model_cfg(small)
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    ours, theirs = folder / "open_clip", folder / "transformers"
    ours.mkdir(parents=True)
    heads = {"num_attention_heads": vision["width"] // vision.get("head_width", 64)}
    about = {
        "projection_dim": cfg["embed_dim"],
        "vision_config": {
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "intermediate_size": 4 * vision["width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        }
        | heads,
        "text_config": {
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": 4 * text["width"],
            "eos_token_id": text["vocab_size"] - 1,
        },
    }
    model = transformers.CLIPModel(transformers.CLIPConfig(**about)).eval()
    model.save_pretrained(theirs)
    size = vision["image_size"]
    transformers.CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(theirs)
    words = SimpleTokenizer()
    vocabulary = [*list(words.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(vocabulary)},
        merges=list(words.bpe_ranks),
        model_max_length=text["context_length"],
    ).save_pretrained(theirs)
    (ours / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": cfg, "preprocess_cfg": {}})
    )
    save_file(as_open_clip(model.state_dict()), ours / "open_clip_model.safetensors")


def as_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a CLIPModel by open_clip's names."""
    found = {"logit_scale": state["logit_scale"]}
    towers = {
        "vision": (
            "visual.",
            {
                "embeddings.class_embedding": "class_embedding",
                "embeddings.patch_embedding.weight": "conv1.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
                "pre_layrnorm": "ln_pre",
                "post_layernorm": "ln_post",
            },
        ),
        "text": (
            "",
            {
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
                "final_layer_norm": "ln_final",
            },
        ),
    }
    inside = {
        "encoder.layers.": "transformer.resblocks.",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for tower, (prefix, names) in towers.items():
        for name, x in state.items():
            if not name.startswith(f"{tower}_model.") or name.endswith("position_ids"):
                continue
            name = name.removeprefix(f"{tower}_model.")
            for old, new in (names | inside).items():
                name = name.replace(old, new)
            found[prefix + name] = x
        projection = {"vision": "visual.proj", "text": "text_projection"}[tower]
        projected = {"vision": "visual_projection", "text": "text_projection"}[tower]
        found[projection] = state[f"{projected}.weight"].T
    for name in [name for name in found if name.endswith("self_attn.q_proj.weight")]:
        for kind in ("weight", "bias"):
            stem = name.removesuffix("q_proj.weight")
            rows = [found.pop(f"{stem}{part}_proj.{kind}") for part in "qkv"]
            found[stem.replace("self_attn.", f"attn.in_proj_{kind}")] = torch.cat(rows)
    return {name: x.contiguous() for name, x in found.items()}


class Files(torch.utils.data.Dataset):
    """Pictures of a list of paths, prepared."""

    def __init__(self, paths, prepare):
        self.paths, self.prepare = paths, prepare

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.prepare(Image.open(self.paths[i])), self.paths[i]


def by_open_clip(folder: pathlib.Path, classes: list[str], threads: int):
    """The five best classes of each picture, as open_clip's documentation shows it."""
    name = f"local-dir:{folder}"
    model, prepare = open_clip.create_model_from_pretrained(name)
    model.eval()
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)([TEMPLATE.format(c) for c in classes])
        bank = model.encode_text(tokens, normalize=True)

    def run(paths):
        batches = torch.utils.data.DataLoader(
            Files(paths, prepare), batch_size=BATCH, num_workers=threads
        )
        rows = []
        with torch.inference_mode():
            for pixels, names in batches:
                found = model.encode_image(pixels, normalize=True)
                best = (model.logit_scale.exp() * found @ bank.T).softmax(-1).topk(5)
                rows += zip(names, best.values.tolist(), best.indices.tolist(), strict=True)
        return rows

    return run


def by_pipeline(folder: pathlib.Path, classes: list[str], threads: int):
    """transformers' pipeline with what it does by default, on a CPU."""
    named = transformers.pipeline("zero-shot-image-classification", model=str(folder), device="cpu")

    def run(paths):
        return named(paths, candidate_labels=classes, hypothesis_template=TEMPLATE)

    return run


def seconds() -> tuple[float, float]:
    """Wall time, and the processor time of this process and those that it has started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--work", choices=["open_clip", "pipeline"])
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--classes")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.small)
        return
    torch.set_num_threads(options.threads)
    paths = sorted(map(str, options.folder.iterdir()))
    make = {"open_clip": by_open_clip, "pipeline": by_pipeline}[options.work]
    run = make(options.model, options.classes.split(","), options.threads)
    run(paths[: BATCH if options.work == "open_clip" else 2])
    for line in sys.stdin:
        start, end = map(int, line.split())
        before = seconds()
        run(paths[start:end])
        print(json.dumps([b - a for a, b in zip(before, seconds(), strict=True)]), flush=True)


if __name__ == "__main__":
    main()
