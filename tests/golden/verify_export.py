"""Whether an exported model computes in PyTorch what it computes here.

    otter-jax export --workdir runs/first --out exported
    python tests/golden/verify_export.py exported

The second command in an environment of its own, since this project has no PyTorch:

    python -m venv /tmp/verify
    /tmp/verify/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/verify/bin/pip install --no-deps timm==1.0.31 torchvision==0.28.0

sentence-transformers is used as well if it is installed.
"""

# ruff: noqa: E402 -- the loop comes before what imports torchvision

import importlib.util
import json
import sys
import types
from pathlib import Path

# Beside a PyTorch for CPUs, torchvision's operators are not there, and timm does not need them.
for name in ("_meta_registrations", "_autograd_registrations"):
    sys.modules[f"torchvision.{name}"] = types.ModuleType(name)

import numpy as np
import timm
import torch
import transformers
from safetensors.torch import load_file

LIMIT = 1e-4

folder = Path(sys.argv[1])
check = np.load(folder / "check.npz")
about = json.loads((folder / "otter_jax.json").read_text())
far = {}


def compare(name, actual, expected):
    far[name] = float(np.abs(torch.nn.functional.normalize(actual).numpy() - expected).max())
    print(f"{name}: largest difference {far[name]:.1e}")


with torch.no_grad():
    encoder = timm.create_model(f"local-dir:{folder / 'image'}", pretrained=True).eval()
    config = encoder.pretrained_cfg
    pixels = torch.tensor(check["pictures"]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    compare("image, timm", encoder((pixels - mean) / std), check["image_embeddings"])

    text = str(folder / "text")
    tokenizer = transformers.AutoTokenizer.from_pretrained(text)
    model = transformers.AutoModel.from_pretrained(text).eval()
    captions = [str(caption) for caption in check["captions"]]
    tokens = tokenizer(
        captions, padding=True, truncation=True, max_length=about["max_tokens"], return_tensors="pt"
    )
    out = model(**tokens)
    if model.config.model_type == "clip_text_model":
        pooled = out.pooler_output
    else:
        mask = tokens["attention_mask"][..., None]
        pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    dense = folder / "text/2_Dense/model.safetensors"
    if dense.exists():
        linear = load_file(dense)
        pooled = pooled @ linear["linear.weight"].T + linear["linear.bias"]
    compare("text, transformers", pooled, check["text_embeddings"])

    has_library = importlib.util.find_spec("sentence_transformers") is not None
    if has_library and (folder / "text/modules.json").exists():
        from sentence_transformers import SentenceTransformer

        embedded = SentenceTransformer(text, device="cpu").encode(captions)
        compare("text, sentence-transformers", torch.tensor(embedded), check["text_embeddings"])

if not all(distance <= LIMIT for distance in far.values()):  # NaN, too
    sys.exit(f"More than {LIMIT} apart.")
