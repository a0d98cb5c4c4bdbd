"""Makes image.onnx and text.onnx of an exported model, and tries them in onnxruntime.

    otter-jax export --workdir runs/first --out exported
    python docs/to_onnx.py exported onnx

The second command in the environment of tests/golden/requirements.txt. Inputs are "pixels", float32
[N, 3, S, S], (picture - mean) / std of otter_jax.json, and "tokens", int64 [N, L], padded to
max_tokens = L; outputs are embeddings of length 1. N is any number.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
import open_clip
import torch

LIMIT = 1e-5


class Tower(torch.nn.Module):
    """Embeds by one tower of an open_clip model."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, batch):
        embed = self.model.encode_image if self.name == "image" else self.model.encode_text
        return embed(batch, normalize=True)


def write(path, tower, name, batch, dynamic, expected):
    """Writes a tower, and compares its embeddings of one row, of a batch and of two with ours."""
    torch.onnx.export(
        tower,
        (batch,),
        path,
        dynamo=True,
        dynamic_shapes=(dynamic,),
        input_names=[name],
        output_names=["embeddings"],
        external_data=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (range(1), range(len(batch)), [*range(len(batch))] * 2):
        (found,) = session.run(None, {name: batch.numpy()[rows]})
        far = float(np.abs(found - expected[rows]).max())
        print(f"{path.name}, {len(rows)} at once: largest difference {far:.1e}")
        if not far <= LIMIT:
            sys.exit(f"More than {LIMIT} apart.")


folder, out = map(pathlib.Path, sys.argv[1:])
out.mkdir(exist_ok=True)
check, about = np.load(folder / "check.npz"), json.loads((folder / "otter_jax.json").read_text())
model = open_clip.create_model(f"local-dir:{folder / 'open_clip'}").eval()
tokens = open_clip.get_tokenizer(f"local-dir:{folder / 'open_clip'}")(
    list(map(str, check["captions"]))
)
mean, std = (torch.tensor(about[name]).reshape(3, 1, 1) for name in ("mean", "std"))
pixels = (torch.tensor(check["pictures"]).permute(0, 3, 1, 2) - mean) / std
N = torch.export.Dim("N", min=1)
for name, entry, batch in (("image", "pixels", pixels), ("text", "tokens", tokens)):
    ours = check[f"{name}_embeddings"]
    write(out / f"{name}.onnx", Tower(model, name).eval(), entry, batch, {0: N}, ours)
