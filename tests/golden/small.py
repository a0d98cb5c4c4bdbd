"""Small transformers: what make_transformers.py computes with and the tests compare with."""

VIT = {"patch": 8, "width": 64, "heads": 4, "depth": 1, "image_size": 32}
# Larger than any real one, so that an epsilon which is not the configured one shows.
EPSILON = 0.01
VITS = {  # arguments of otter_jax.models.vit.ViT
    "token": VIT,
    "mean": VIT | {"pool": "mean"},
    "clip": VIT | {"pre_norm": True, "epsilon": EPSILON},
    "quick_gelu": VIT | {"pre_norm": True, "epsilon": EPSILON, "activation": "quick_gelu"},
}
VIT_CASES = [  # with the images' height and width: as stored; a grid that is longer and narrower
    ("token", (32, 32)),
    ("token", (48, 24)),
    ("mean", (48, 24)),
    ("clip", (32, 32)),
    ("quick_gelu", (48, 24)),
]

# A config.json of transformers; what is not here is as in openai/clip-vit-base-patch32.
CLIP = {
    "model_type": "clip",
    "text_config": {
        "vocab_size": 99,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 12,
        "layer_norm_eps": EPSILON,
        "bos_token_id": 89,
        "eos_token_id": 90,
    },
    "vision_config": {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "layer_norm_eps": EPSILON,
        "image_size": 32,
        "patch_size": 8,
    },
    "projection_dim": 16,
}
CLIP_IDS = [
    [89, 5, 6, 7, 90, 90, 90, 90, 90, 90],  # padded with the closing token, as CLIP's tokenizer is
    [89, 11, 12, 13, 14, 15, 16, 17, 18, 90],
    [0, 0, 0, 89, 8, 9, 90, 0, 0, 0],  # padded on both sides
    [89, 21, 95, 22, 90, 0, 0, 0, 0, 0],  # 95 is above the closing token
]
CLIP_MASK = [
    [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 1, 1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
]
