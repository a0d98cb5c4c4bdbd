"""Reads the configs of a CLIPModel as transformers saves it."""

from pathlib import Path
from typing import Any

from otter_jax.errors import UserError
from otter_jax.models.clip import ClipText
from otter_jax.models.fitting import Fitting
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ACTIVATIONS, ViT
from otter_jax.weights import encoders, hub, layout, naming
from otter_jax.weights.layout import Layout
from otter_jax.weights.tensors import Tell

# As in openai/clip-vit-base-patch32, which files leave out.
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "num_channels": 3,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
PREPARATION = {
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
    "size": {"shortest_edge": 224}, "crop_size": 224, "resample": 3, "rescale_factor": 1 / 255,
    "image_mean": layout.MEAN, "image_std": layout.STD,
}  # fmt: skip
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
RULES = (
    (r"^vision_model\.", "img."),
    (r"^text_model\.", "txt."),
    (r"^visual_projection\.", "img_head."),
    (r"^text_projection\.", "txt_head."),
)


def is_one(config: dict[str, Any]) -> bool:
    """Tells whether a config.json is a whole CLIP's."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return config.get("model_type", "clip" if first == "CLIPModel" else None) == "clip"


def read(folder: Path, *, dtype: Any, tell: Tell) -> Layout:
    """Returns the layout of a folder with config.json and preprocessor_config.json.

    `tell` is told what the files leave open. Raises UserError for a model that is not read here.
    """
    file = folder / "config.json"
    about = layout.read_json(file)
    image = _image(file, about, dtype)
    make, config = encoders.read_config(folder, tell=tell)
    assert make is ClipText, make
    pictures, (mean, std) = _pictures(folder, tell)
    if pictures.size != image.image_size:
        raise UserError(
            f"{folder}: the pictures are cropped to {pictures.size} pixels "
            f"(preprocessor_config.json), but the encoder reads {image.image_size} (config.json)."
        )
    module = Towers(
        img=image,
        txt=ClipText(config, dtype),
        dim=layout.count(file, about, "projection_dim", 512),
        txt_width=config.hidden_size,
        mean=mean,
        std=std,
        unbiased=("img", "txt"),
    )
    # FAMILIES has timm's names first; the other ones are those of Hugging Face.
    families = {"img": naming.FAMILIES[ViT][1:], "txt": naming.FAMILIES[ClipText]}
    return Layout(
        module,
        families,
        RULES,
        hub.WEIGHTS_FILES,
        pictures,
        config.max_length,
        tokenizer=layout.usual_tokenizer(config),
        library="transformers",
    )


def _image(file: Path, about: dict[str, Any], dtype: Any) -> ViT:
    """Returns the image encoder that config.json describes."""
    # In old files vision_config_dict repeats some fields, and its values are the right ones.
    parts = (layout.section(file, about, f"vision_config{end}") for end in ("", "_dict"))
    vision = VISION | {k: v for part in parts for k, v in part.items()}
    width, patch, size, heads, depth = (
        layout.count(file, vision, name, VISION[name])
        for name in (
            "hidden_size", "patch_size", "image_size", "num_attention_heads", "num_hidden_layers"
        )
    )  # fmt: skip
    layout.check_fixed(file, vision, {"num_channels": 3, "intermediate_size": 4 * width})
    layout.check_grid(file, width=width, heads=heads, size=size, patch=patch)
    return ViT(
        patch=patch,
        width=width,
        heads=heads,
        depth=depth,
        pre_norm=True,
        activation=layout.chosen(file, vision, "hidden_act", "quick_gelu", tuple(ACTIVATIONS)),
        epsilon=float(vision["layer_norm_eps"]),
        image_size=size,
        dtype=dtype,
    )


def _pictures(folder: Path, tell: Tell) -> tuple[Fitting, tuple]:
    """Returns how pictures become pixels, and mean and deviation of these in 0..255."""
    file, about = folder / "preprocessor_config.json", {}
    whole = folder / "processor_config.json"
    if file.is_file():
        about = layout.read_json(file)
    elif whole.is_file():
        file, about = whole, layout.section(whole, layout.read_json(whole), "image_processor")
    if not about:
        tell(f"{folder} has no preprocessor_config.json: pictures are prepared as for OpenAI's.")
    kind = about.get("image_processor_type", about.get("feature_extractor_type", "CLIP"))
    given = PREPARATION | {k: v for k, v in about.items() if v is not None}
    if not str(kind).startswith("CLIP"):
        raise UserError(f"{file} is of {kind}, and what is read here of CLIPImageProcessor.")
    fixed = {"do_resize": True, "do_rescale": True, "do_pad": False, "do_normalize": True}
    layout.check_fixed(file, given, fixed)
    if abs(255 * given["rescale_factor"] - 1) > 1e-4:
        raise UserError(f"{file}: rescale_factor={given['rescale_factor']!r}, not 1/255.")
    size = given["size"]
    shortest = {"shortest_edge": size} if type(size) is int else size
    if not isinstance(size, int | dict) or sorted(shortest) not in (
        ["shortest_edge"],
        ["height", "width"],
    ):
        raise UserError(
            f"{file} says size={size!r}; what is read is shortest_edge, or height and width."
        )
    squash = "height" in shortest
    resize = layout.side(file, "size", shortest)
    crop = layout.side(file, "crop_size", given["crop_size"]) if given["do_center_crop"] else resize
    if crop > resize or not (squash or given["do_center_crop"]):
        cropped = f"crop_size={crop}" if given["do_center_crop"] else "do_center_crop=False"
        raise UserError(f"{file}: size={size!r} and {cropped} do not give a full square of pixels.")
    pictures = Fitting(
        crop,
        resize,
        "squash" if squash else "shortest",
        RESAMPLE[layout.chosen(file, given, "resample", 3, tuple(RESAMPLE))],
        halves="down",
    )
    return pictures, layout.pixels(file, given["image_mean"], given["image_std"])
