"""Writes transformers.npz, the reference of test_vit.py, test_clip.py and test_bert.py.

timm's and transformers' outputs and gradients in float64, with weights that `draw.tensor` draws by
their names. Made once, in an environment of its own, since this project has no PyTorch:

    python -m venv /tmp/transformers
    /tmp/transformers/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors pyyaml
    /tmp/transformers/bin/pip install --no-deps timm==1.0.31 torchvision
    /tmp/transformers/bin/python tests/golden/make_transformers.py

Where torchvision's compiled part does not load beside a CPU-only torch, its pure Python does, which
is all that timm needs: the two lines on torchvision below see to it.
"""

# ruff: noqa: E402 -- the two lines come before what imports torchvision

import hashlib
import json
import sys
import types
from functools import partial
from pathlib import Path

for name in ("_meta_registrations", "_autograd_registrations"):
    sys.modules[f"torchvision.{name}"] = types.ModuleType(name)

import numpy as np
import timm
import torch
import transformers
from draw import SEED, tensor
from small import CLIP, CLIP_IDS, CLIP_MASK, VIT_CASES, VITS
from timm.layers import LayerNorm, QuickGELU, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

HERE = Path(__file__).parent
# The published ones; "_mean" is this project's and adds no weights.
ARCHS = [
    "vit_small_patch32_224",
    "vit_small_patch16_224",
    "vit_base_patch32_224",
    "vit_base_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch32_clip_quickgelu_224",
    "vit_base_patch16_clip_quickgelu_224",
]
out = {}


def drawn(model):
    """The model in float64 with drawn weights."""
    state = {name: torch.tensor(tensor(name, x.shape)) for name, x in model.state_dict().items()}
    model.load_state_dict(state)
    return model.double().eval()


def images(height, width):
    """Two images, cut from squares as `recipe_images` gives them."""
    side = max(height, width)
    squares = np.random.RandomState(SEED).standard_normal((2, 3, side, side)).astype(np.float32)
    return torch.tensor(squares[:, :, :height, :width]).double()


def record(key, features, parameters, some=()):
    """Features, and gradients of their product with drawn numbers.

    Norms of all gradients, by name, and 50 entries or so of those that `some` names.
    """
    out[f"{key}|features"] = features
    parameters = dict(parameters)
    scalar = (features * torch.tensor(tensor("probe", features.shape))).sum()
    gradients = torch.autograd.grad(scalar, list(parameters.values()))
    gradients = dict(zip(parameters, gradients, strict=True))
    out[f"{key}|norms"] = torch.stack([gradients[name].norm() for name in sorted(gradients)])
    for name in some:
        gradient = gradients[name].flatten()
        out[f"{key}|gradient|{name}"] = gradient[:: max(1, len(gradient) // 50)]


# --- timm -----------------------------------------------------------------------------------------

for name, size in VIT_CASES:
    a = VITS[name]
    model = VisionTransformer(
        img_size=a["image_size"],
        patch_size=a["patch"],
        embed_dim=a["width"],
        depth=a["depth"],
        num_heads=a["heads"],
        num_classes=0,
        pre_norm=a.get("pre_norm", False),
        norm_layer=partial(LayerNorm, eps=a.get("epsilon", 1e-6)),
        act_layer=a.get("activation"),
        global_pool={"token": "token", "mean": "avg"}[a.get("pool", "token")],
        fc_norm=False,
        dynamic_img_size=True,
    )
    drawn(model)
    some = ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"]
    key = f"vit_{name}_{size[0]}x{size[1]}"
    record(key, model(images(*size)), model.named_parameters(), some)

with torch.no_grad():
    model = drawn(timm.create_model("vit_small_patch16_224", num_classes=0))
    out["vit_small_patch16_224|features"] = model(images(224, 224))

    positions = torch.tensor(tensor("positions", (1, 1 + 7 * 7, 8)))
    for grid in ((7, 7), (14, 14), (4, 4), (3, 10)):
        key = f"resample_{grid[0]}x{grid[1]}"
        out[key] = resample_abs_pos_embed(positions, list(grid), old_size=[7, 7])

for name in ARCHS:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
    content = sorted((key, tuple(x.shape)) for key, x in model.state_dict().items())
    digest = hashlib.sha256(repr(content).encode()).digest()
    out[f"{name}|sha256"] = np.frombuffer(digest, np.uint8)
    block = model.blocks[0]
    # What shapes do not tell: heads, epsilon, whether the activation is quick_gelu.
    quick = isinstance(block.mlp.act, QuickGELU)
    assert quick or isinstance(block.mlp.act, torch.nn.GELU)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {model.norm.eps}
    out[f"{name}|settings"] = np.array([block.attn.num_heads, model.norm.eps, quick])

# --- transformers ---------------------------------------------------------------------------------

model = drawn(transformers.CLIPModel(transformers.CLIPConfig.from_dict(CLIP)))
vision, text = model.vision_model, model.text_model
parameters = {f"vision_model.{name}": x for name, x in vision.named_parameters()}
some = [
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.encoder.layers.0.self_attn.v_proj.weight",
]
record("clip_vision", vision(images(32, 32)).pooler_output, parameters, some)

ids, mask = torch.tensor(CLIP_IDS), torch.tensor(CLIP_MASK)
parameters = {f"text_model.{name}": x for name, x in text.named_parameters()}
some = [
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.0.self_attn.q_proj.weight",
]
found = text(input_ids=ids, attention_mask=mask)
record("clip_text", found.pooler_output, parameters, some)
out["clip_text|hidden"] = found.last_hidden_state
text.eos_token_id = 2  # as configs up to 2023 say
out["clip_text|legacy"] = text(input_ids=ids, attention_mask=mask).pooler_output

texts = np.load(HERE / "arch_text.npz")
configs = json.loads((HERE / "arch_text_configs.json").read_text())
for name, kind in (
    ("bert_small", transformers.BertModel),
    ("roberta_small", transformers.RobertaModel),
):
    config = kind.config_class.from_dict(configs[name])
    model = drawn(kind(config, add_pooling_layer=False))
    ids, mask = (torch.tensor(texts[f"{name}_{what}"]).long() for what in ("ids", "mask"))
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    some = [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "encoder.layer.1.attention.self.query.weight",
        "encoder.layer.0.output.LayerNorm.weight",
    ]
    record(name, pooled, model.named_parameters(), some)

arrays = {
    key: x.detach().float().numpy() if isinstance(x, torch.Tensor) else x for key, x in out.items()
}
np.savez_compressed(HERE / "transformers.npz", **arrays)
