"""Whether an exported model computes in PyTorch's programs what it computes here.

    otter-jax export --workdir runs/first --out exported --eval unseen
    sh tests/golden/verify.sh exported

The second command makes an environment of its own (requirements.txt) and runs this file in it. The
pictures and captions of check.npz are embedded by timm, transformers, sentence-transformers and
open_clip; CLIP_benchmark evaluates the sets of `--eval`, and finds what the results of the run say,
to the picture. With `--pictures FOLDER` it also says how far open_clip's own resizing takes the
embeddings of these pictures from ours.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata

import numpy as np
import open_clip
import PIL.Image
import sentence_transformers
import timm
import torch
import transformers
from safetensors.torch import load_file

LIMIT = 1e-5
PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "sentence-transformers")
METRICS = {"acc1": "FH@1", "acc5": "FH@5", "mean_per_class_recall": "recall@1"}

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--pictures", type=pathlib.Path)
options = parser.parse_args()
folder = options.folder
check = np.load(folder / "check.npz")
about = json.loads((folder / "otter_jax.json").read_text())
captions = [str(caption) for caption in check["captions"]]
wrong = []


def compare(name, actual, expected):
    actual = torch.nn.functional.normalize(torch.as_tensor(actual), dim=-1)
    far = float(np.abs(actual.numpy() - expected).max())
    print(f"{name}: largest difference {far:.1e}")
    if not far <= LIMIT:  # NaN, too
        wrong.append(name)


def pixels():
    mean, std = (torch.tensor(about[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    return (torch.tensor(check["pictures"]).permute(0, 3, 1, 2) - mean) / std


def by_timm():
    encoder = timm.create_model(f"local-dir:{folder / 'image'}", pretrained=True).eval()
    compare("image, timm", encoder(pixels()), check["image_embeddings"])


def by_transformers():
    text = str(folder / "text")
    tokenizer = transformers.AutoTokenizer.from_pretrained(text)
    model = transformers.AutoModel.from_pretrained(text).eval()
    tokens = tokenizer(
        captions, padding=True, truncation=True, max_length=about["max_tokens"], return_tensors="pt"
    )
    out = model(**tokens)
    if model.config.model_type == "clip_text_model":
        pooled = out.pooler_output
    else:
        mask = tokens["attention_mask"][..., None]
        pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    if (folder / "text/3_Dense").exists():
        return  # transformers leaves pooling and layers to others
    dense = folder / "text/2_Dense/model.safetensors"
    if dense.exists():
        linear = load_file(dense)
        pooled = pooled @ linear["linear.weight"].T + linear["linear.bias"]
    compare("text, transformers", pooled, check["text_embeddings"])


def by_sentence_transformers():
    if (folder / "text/modules.json").exists():
        model = sentence_transformers.SentenceTransformer(str(folder / "text"), device="cpu")
        compare("text, sentence-transformers", model.encode(captions), check["text_embeddings"])
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    embedded = model.encode(captions)
    compare("text, sentence-transformers, both towers", embedded, check["text_embeddings"])
    # As its own processor would prepare them, but for resizing: they have their size.
    out = model({"pixel_values": pixels(), "modality": "image"})["sentence_embedding"]
    compare("image, sentence-transformers, both towers", out, check["image_embeddings"])
    return model


def by_open_clip():
    name = f"local-dir:{folder / 'open_clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokens = open_clip.get_tokenizer(name)(captions)
    compare("text, open_clip", model.encode_text(tokens), check["text_embeddings"])
    prepared = torch.stack([preprocess(PIL.Image.fromarray(x)) for x in check["pictures"]])
    compare("image, open_clip", model.encode_image(prepared), check["image_embeddings"])
    scale, ours = float(model.logit_scale.exp()), about["scale"]["pairs"]
    print(f"temperature, open_clip: cosines times {scale:.4f}, here {ours:.4f}")
    if abs(scale / ours - 1) > LIMIT:
        wrong.append("temperature")
    return model, preprocess


def by_clip_benchmark(root):
    """Compares the metrics of a set with the run's own, as numbers of pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "result.json"
        command = ["eval", "--dataset", f"wds/{root.name}", "--dataset_root", root]
        command += ["--model", f"local-dir:{folder / 'open_clip'}", "--pretrained", "none"]
        command += ["--task", "zeroshot_classification", "--no_amp", "--num_workers", "1"]
        program = "from clip_benchmark.cli import main; main()"
        command = [sys.executable, "-c", program, *command, "--output", out]
        subprocess.run(command, check=True, capture_output=True)
        found = json.loads(out.read_text())["metrics"]
    result = about.get("results", {}).get(root.name, {})
    ours, count = result.get(about["weights"], {}), result.get("images", 0)
    print(f"{root.name}, CLIP_benchmark:", ", ".join(f"{k} {v:.6f}" for k, v in found.items()))
    for theirs, own in METRICS.items():
        if own in ours:
            apart = (found[theirs] - ours[own]) * count
            print(f"  {own} here {ours[own]:.6f}: {abs(apart):.2f} of {count} pictures apart")
            if not abs(apart) < 0.5:
                wrong.append(f"{root.name}, {theirs}")
        else:
            print(f"  {own} is not among the run's results (otter-jax eval)")


def resized(sentence_model, clip_model, preprocess):
    """Says how far open_clip's resizing takes embeddings; timm's is ours."""
    paths = sorted(path for path in options.pictures.rglob("*") if path.is_file())
    pictures = [PIL.Image.open(path).convert("RGB") for path in paths]
    ours = torch.tensor(sentence_model.encode(pictures))
    theirs = clip_model.encode_image(torch.stack([preprocess(each) for each in pictures]))
    cosines = (ours * torch.nn.functional.normalize(theirs, dim=-1)).sum(-1)
    print(
        f"{len(paths)} pictures resized by open_clip: cosine with ours {cosines.mean():.4f} in the "
        f"mean, {cosines.min():.4f} at least"
    )


with torch.no_grad():
    print(", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    by_timm()
    by_transformers()
    both = by_sentence_transformers()
    if (folder / "open_clip").exists():
        found = by_open_clip()
        for each in sorted((folder / "eval").glob("*")):
            by_clip_benchmark(each)
        if options.pictures:
            resized(both, *found)

if wrong:
    sys.exit(f"More than {LIMIT} apart: {'; '.join(wrong)}.")
