"""Writes two_towers.npz and .json, the reference of tests/weights/test_two_towers.py.

Small CLIPs as transformers and open_clip save them, with weights that `draw.tensor` draws by their
names, and what these libraries compute with them. Made once, in an environment of its own, since
this project has no PyTorch:

    python -m venv /tmp/towers
    /tmp/towers/bin/pip install torch torchvision timm==1.0.31 transformers==5.24.0
    /tmp/towers/bin/pip install open_clip_torch==3.3.0
    /tmp/towers/bin/python tests/golden/make_two_towers.py

The .json holds for every case the files of its folder but the weights, whose names and shapes stand
there; the .npz holds embeddings, pixels and token ids.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
import transformers
from draw import tensor
from PIL import Image
from safetensors.torch import save_file
from small_convnets import RESNET
from timm.models import register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer

HERE = Path(__file__).parent
SIZE, LENGTH = 32, 12  # pixels and tokens
TEXTS = ["A photo of an otter.", "the otter's  OTTERS, two of them, hold hands as they sleep", ""]
SHAPES = ((61, 83), (83, 61), (35, 47))  # of pictures
cases, out = {}, {}


# --- small models under names of timm's -----------------------------------------------------------


@register_model
def small_resnet(pretrained=False, **options):
    """The ResNet-D of small_convnets.py."""
    made = ResNet(
        Bottleneck,
        RESNET["stage_sizes"],
        channels=RESNET["channels"],
        stem_type="deep",
        stem_width=32,
        avg_down=True,
        **{k: v for k, v in options.items() if k in ("num_classes", "global_pool")},
    )
    made.default_cfg = {"pool_size": (1, 1)}
    return made


@register_model
def small_vit(pretrained=False, **options):
    """A ViT with a class token."""
    known = {k: v for k, v in options.items() if k in ("num_classes", "global_pool")}
    made = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=64, depth=1, num_heads=4, **known
    )
    made.default_cfg = {}
    return made


# --- tokenizers -----------------------------------------------------------------------------------


def clip_tokenizer(folder):
    """A CLIP tokenizer of bytes and four merges."""
    byte = list(open_clip.tokenizer.bytes_to_unicode().values())
    merges = [("o", "t"), ("t", "e"), ("ot", "te"), ("r", "s</w>")]
    words = [*byte, *(f"{b}</w>" for b in byte), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    # The vocabulary and its merges alone: tokenizer.json says the same at eight times the length.
    text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text(text, "utf-8")
    again = transformers.CLIPTokenizer.from_pretrained(folder)
    assert again(TEXTS)["input_ids"] == made(TEXTS)["input_ids"]
    return len(words)


def bert_tokenizer(folder):
    """A BERT tokenizer of a few words."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of an otter ##s ' two them , hold the . hands"
    (folder / "vocab.txt").write_text("\n".join(words.split()), "utf-8")
    return len(words.split())


def roberta_tokenizer(folder):
    """A RoBERTa tokenizer of bytes and a merge."""
    byte = sorted(open_clip.tokenizer.bytes_to_unicode().values())
    words = ["<s>", "<pad>", "</s>", "<unk>", *byte, "ot", "<mask>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\no t\n", "utf-8")
    return len(words)


# --- inputs and outputs ---------------------------------------------------------------------------


def pictures():
    """Pictures of blocks, bytes [H, W, 3]."""
    rng = np.random.RandomState(0)
    for height, width in SHAPES:
        blocks = rng.randint(0, 256, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
        yield blocks.repeat(5, 0).repeat(5, 1)[:height, :width]


def drawn(state):
    """The state with drawn weights; counts and positions as they are."""
    return {
        name: torch.tensor(tensor(name, tuple(x.shape))) if x.is_floating_point() else x
        for name, x in state.items()
    }


def record(key, folder, state, **arrays):
    """Keeps a case: the files of its folder, what its weights are called, what came out."""
    files = {
        str(path.relative_to(folder)): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors"
    }
    cases[key] = {
        "files": files,
        "weights": next(path.name for path in folder.glob("*.safetensors")),
        "tensors": {name: list(x.shape) for name, x in state.items() if x.is_floating_point()},
        "counts": [name for name, x in state.items() if not x.is_floating_point()],
    }
    for name, value in arrays.items():
        out[f"{key}|{name}"] = value.detach().numpy() if torch.is_tensor(value) else value


def bytes_of(prepared, mean, std):
    """The pixels 0..255 of a prepared picture, which are whole numbers but for rounding."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (mean, std))
    pixels = (prepared * std + mean) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


# --- transformers ---------------------------------------------------------------------------------


def hugging_face(key, *, act, dim, legacy, **preparation):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = clip_tokenizer(folder)
        config = {
            "text_config": {
                "vocab_size": vocabulary,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 40,
                "max_position_embeddings": LENGTH,
                "hidden_act": act,
                "bos_token_id": vocabulary - 2,
                "eos_token_id": 2 if legacy else vocabulary - 1,
            },
            "vision_config": {
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "intermediate_size": 96,
                "hidden_act": act,
                "image_size": SIZE,
                "patch_size": 8,
            },
            "projection_dim": dim,
        }
        model = transformers.CLIPModel(transformers.CLIPConfig.from_dict(config)).eval()
        state = drawn(model.state_dict())
        model.load_state_dict(state)
        model.save_pretrained(folder)
        prepare = transformers.CLIPImageProcessor(**preparation)
        prepare.save_pretrained(folder)
        tokens = transformers.CLIPTokenizer.from_pretrained(folder)(
            TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        seen = prepare([Image.fromarray(x) for x in pictures()], return_tensors="pt").pixel_values
        with torch.no_grad():
            images, texts = model.vision_model(seen), model.text_model(**tokens)
            images = unit(model.visual_projection(images.pooler_output))
            texts = unit(model.text_projection(texts.pooler_output))
            logits = model(pixel_values=seen, **tokens).logits_per_image
        mean, std = prepare.image_mean, prepare.image_std
        record(
            key,
            folder,
            state,
            token_ids=tokens["input_ids"],
            mask=tokens["attention_mask"],
            pixels=np.stack([bytes_of(x, mean, std) for x in seen]),
            images=images,
            texts=texts,
            logits=logits,
        )


hugging_face(
    "hf_quick_gelu",
    act="quick_gelu",
    dim=20,
    legacy=False,
    size={"shortest_edge": SIZE},
    crop_size={"height": SIZE, "width": SIZE},
)
hugging_face(  # the projections stay where widths are equal
    "hf_gelu_squash",
    act="gelu",
    dim=16,
    legacy=True,
    size={"height": SIZE, "width": SIZE},
    do_center_crop=False,
    resample=2,
    image_mean=[0.5, 0.5, 0.5],
    image_std=[0.5, 0.5, 0.5],
)
hugging_face(
    "hf_larger",
    act="gelu",
    dim=20,
    legacy=False,
    size={"shortest_edge": 41},
    crop_size={"height": SIZE, "width": SIZE},
)

# --- open_clip ------------------------------------------------------------------------------------

CLIP_TEXT = {"context_length": LENGTH, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": SIZE, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def of_open_clip(key, *, dim, vision, text, bert=None, preparation=None, **model_cfg):
    """`bert` is the model_type of the text encoder, if it is not CLIP's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # which hf_model_name counts from
        text = {"context_length": LENGTH} | text
        if bert:
            made = {"bert": bert_tokenizer, "roberta": roberta_tokenizer}[bert](folder)
            config = {"model_type": bert, "vocab_size": made, **BERT}
            if bert == "roberta":
                config |= {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 22}
            (folder / "config.json").write_text(json.dumps(config))
            text |= {"hf_model_name": ".", "hf_tokenizer_name": "."}
        else:
            text = CLIP_TEXT | text | {"vocab_size": clip_tokenizer(folder)}
            text |= {"hf_tokenizer_name": "."}
            kind = {"tokenizer_class": "CLIPTokenizer"}
            (folder / "tokenizer_config.json").write_text(json.dumps(kind))
        config = {
            "model_cfg": {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text, **model_cfg},
            "preprocess_cfg": preparation or {},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
        state = drawn(model.state_dict())
        save_file(state, folder / "open_clip_model.safetensors")
        model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        model.eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        seen = torch.stack([prepare(Image.fromarray(x)) for x in pictures()])
        with torch.no_grad():
            images = model.encode_image(seen, normalize=True)
            texts = model.encode_text(tokens, normalize=True)
            logits = model.get_logits(seen, tokens)[0]
        mean, std = model.visual.preprocess_cfg["mean"], model.visual.preprocess_cfg["std"]
        # The name stands for a repository whose config.json lies in the folder.
        about = json.loads((folder / "open_clip_config.json").read_text())
        for entry in ("hf_model_name", "hf_tokenizer_name"):
            if entry in about["model_cfg"]["text_cfg"]:
                about["model_cfg"]["text_cfg"][entry] = "someone/text"
        (folder / "open_clip_config.json").write_text(json.dumps(about))
        record(
            key,
            folder,
            state,
            token_ids=tokens,
            pixels=np.stack([bytes_of(x, mean, std) for x in seen]),
            images=images,
            texts=texts,
            logits=logits,
        )
        os.chdir(HERE)


of_open_clip("vit_quick_gelu", dim=20, vision=VIT, text={}, quick_gelu=True)
of_open_clip(
    "vit_custom_text",
    dim=16,
    vision=VIT | {"pool_type": "avg"},
    text={"pool_type": "eos", "eos_id": 517},
    preparation={"interpolation": "bilinear", "resize_mode": "squash"},
    custom_text=True,
)
TRUNK = {"image_size": SIZE, "timm_pool": "avg"}
of_open_clip(
    "resnet_bert",
    dim=16,
    vision=TRUNK | {"timm_model_name": "small_resnet", "timm_proj": ""},
    text={"hf_pooler_type": "mean_pooler", "hf_proj_type": None},
    bert="bert",
    preparation={"resize_mode": "longest", "mean": [0.5] * 3, "std": [0.25] * 3},
)
of_open_clip(
    "resnet_bert_linear",
    dim=20,
    vision=TRUNK | {"timm_model_name": "small_resnet", "timm_proj": "linear"},
    text={"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"},
    bert="bert",
)
of_open_clip(
    "resnet_clip_text",
    dim=20,
    vision=TRUNK | {"timm_model_name": "small_resnet", "timm_proj": ""},
    text={},
)
of_open_clip(
    "vit_trunk_roberta",
    dim=20,
    vision=TRUNK | {"timm_model_name": "small_vit", "timm_proj": "linear"},
    text={"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"},
    bert="roberta",
)
of_open_clip(
    "vit_trunk_token",
    dim=20,
    vision=TRUNK | {"timm_model_name": "small_vit", "timm_proj": "", "timm_pool": "token"},
    text={"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "linear"},
    bert="bert",
)

cases["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers, open_clip)}
(HERE / "two_towers.json").write_text(json.dumps(cases, indent=None, ensure_ascii=False), "utf-8")
np.savez_compressed(
    HERE / "two_towers.npz",
    **{key: x.astype(np.float32 if x.dtype.kind == "f" else x.dtype) for key, x in out.items()},
)
