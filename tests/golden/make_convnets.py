"""Writes convnets.npz, the reference of test_resnet.py, test_efficientnet.py and test_mobilenet.py.

timm's outputs, running statistics and gradients in float64, with weights that `draw.tensor` draws
by their names. Made once, in an environment of its own, since this project has no PyTorch:

    python -m venv /tmp/convnets
    /tmp/convnets/bin/pip install torch==2.13.0 safetensors pyyaml huggingface_hub
    /tmp/convnets/bin/pip install --no-deps timm==1.0.31 torchvision
    /tmp/convnets/bin/python tests/golden/make_convnets.py

Where torchvision's compiled part does not load beside a CPU-only torch, its pure Python does, which
is all that timm needs: the two lines on torchvision below see to it.
"""

# ruff: noqa: E402 -- the two lines come before what imports torchvision

import hashlib
import re
import sys
import types
from functools import partial
from pathlib import Path

for name in ("_meta_registrations", "_autograd_registrations"):
    sys.modules[f"torchvision.{name}"] = types.ModuleType(name)

import numpy as np
import timm
import torch
from draw import SEED, tensor
from small_convnets import EFFICIENTNETS, MOBILENETS, PIXELS, RESNET
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import Bottleneck, ResNet

CLASSES = 10
ARCHS = [
    *(f"resnet{depth}{d}" for depth in (18, 26, 34, 50, 101, 152) for d in ("", "d")),
    *(f"{tf}efficientnet_b{size}" for tf in ("", "tf_") for size in range(4)),
    *(f"{tf}efficientnet_lite{size}" for tf in ("", "tf_") for size in range(5)),
    *("mobilenetv3_small_100", "mobilenetv3_large_100", "fbnetv3_b", "fbnetv3_d", "fbnetv3_g"),
]
EVALUATED = [
    *("resnet18d", "resnet50d", "resnet152"),
    *("efficientnet_b0", "tf_efficientnet_b0", "efficientnet_b3"),
    *("efficientnet_lite0", "tf_efficientnet_lite0"),
    *("mobilenetv3_small_100", "mobilenetv3_large_100", "fbnetv3_b", "fbnetv3_d", "fbnetv3_g"),
]
# Of the first gradient to match each of these, entries are kept.
KEPT = ["", "downsample", "se.conv_reduce.weight", "se.conv_expand.bias", "blocks.2.*conv_dw"]
out = {}


def put(key, value):
    out[key] = value.detach().float().numpy()


def some(value):
    """About 50 entries."""
    return value.flatten()[:: max(1, value.numel() // 50)]


def norms_of(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}


def images(size):
    """Four of them, as `recipe_images` gives them."""
    drawn = np.random.RandomState(SEED).standard_normal((4, 3, size, size))
    return torch.tensor(drawn.astype(np.float32)).double()


def evaluate(key, model, x):
    """Draws the weights and records the features of `x`.

    The drawn statistics of each norm are scaled to the size of what it sees, and the factors
    recorded; as drawn, they shrink the signal until all images look alike, or let it explode.
    """
    state = {name: torch.tensor(tensor(name, v.shape)) for name, v in model.state_dict().items()}
    model.load_state_dict(state)
    model.double().eval()
    scales = {}

    def fit(norm, inputs, name):
        scales[name] = inputs[0].square().mean().float().double()
        norm.running_mean *= scales[name].sqrt()
        norm.running_var *= scales[name]

    hooks = [
        norm.register_forward_pre_hook(partial(fit, name=name))
        for name, norm in norms_of(model).items()
    ]
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    for hook in hooks:
        hook.remove()
    put(f"{key}|features", features)
    put(f"{key}|scales", torch.stack([scales[name] for name in sorted(scales)]))
    spread = features.std(0).mean() / features.abs().mean()
    print(f"{key}: the images differ by {spread:.2f} of the mean feature", flush=True)


def train(key, model, x, momentum):
    """Records logits, running statistics after them, and gradients of their product with numbers.

    Norms of all gradients, by name, and some entries of a few.
    """
    norms = norms_of(model)
    for norm in norms.values():
        norm.momentum = momentum
    logits = model.train()(x)
    put(f"{key}|logits", logits)
    for name in (list(norms)[i] for i in (0, len(norms) // 2, -1)):
        put(f"{key}|stats|{name}.running_mean", some(norms[name].running_mean))
        put(f"{key}|stats|{name}.running_var", some(norms[name].running_var))
    (logits * torch.tensor(tensor("probe", logits.shape))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    put(f"{key}|norms", torch.stack([gradients[name].norm() for name in sorted(gradients)]))
    kept = [f"{list(norms)[-1]}.weight"]
    kept += [next((name for name in gradients if re.search(k, name)), None) for k in KEPT]
    for name in filter(None, kept):
        put(f"{key}|gradient|{name}", some(gradients[name]))


def blocks(repeats, channels, expansion, kernel, stride, squeeze, *, relu=False):
    """A row of our tables in timm's notation."""
    kind = "ds" if expansion == 1 else "ir"
    flags = "_se0.25" * squeeze + "_nre" * relu
    return f"{kind}_r{repeats}_k{kernel}_s{stride}_e{expansion}_c{channels}{flags}"


def small_resnet(stage_sizes, block, channels, deep):
    assert (block, deep) == ("bottleneck", True)
    return ResNet(
        Bottleneck,
        stage_sizes,
        channels=channels,
        stem_type="deep",
        stem_width=32,
        avg_down=True,
        num_classes=CLASSES,
    )


def small_efficientnet(width_factor, stages, lite=False, tensorflow=False):
    channels = partial(round_channels, multiplier=width_factor)
    return EfficientNet(
        decode_arch_def([[blocks(*stage, not lite)] for stage in stages]),
        num_features=1280 if lite else channels(1280),
        fix_stem=lite,
        round_chs_fn=channels,
        act_layer=torch.nn.ReLU6 if lite else torch.nn.SiLU,
        norm_layer=partial(torch.nn.BatchNorm2d, eps=1e-3 if tensorflow else 1e-5),
        pad_type="same" if tensorflow else "",
        num_classes=CLASSES,
    )


def small_mobilenet(stages, channels, relu_stages=0, kind="mobilenetv3"):
    definition = [
        [blocks(*row, relu=stage < relu_stages) for row in rows]
        for stage, rows in enumerate(stages)
    ]
    stem, last, head = channels
    squeeze = partial(SqueezeExcite, gate_layer="hard_sigmoid")
    if kind == "fbnetv3":
        squeeze.keywords["rd_round_fn"] = partial(round_channels, round_limit=0.95)
    else:
        squeeze.keywords.update(force_act_layer=torch.nn.ReLU, rd_round_fn=round_channels)
    return MobileNetV3(
        decode_arch_def([*definition, [f"cn_r1_k1_s1_c{last}"]]),
        num_features=head,
        stem_size=stem,
        head_bias=kind != "fbnetv3",
        se_from_exp=kind != "fbnetv3",
        se_layer=squeeze,
        act_layer=torch.nn.Hardswish,
        norm_layer=torch.nn.BatchNorm2d,
        num_classes=CLASSES,
    )


for arch in ARCHS:
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=1000).state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items() if "num_batches" not in name}
    digest = hashlib.sha256(repr(sorted(shapes.items())).encode()).digest()
    out[f"{arch}|sha256"] = np.frombuffer(digest, np.uint8)

small = {"resnetd": small_resnet(**RESNET)}
small |= {name: small_efficientnet(**arguments) for name, arguments in EFFICIENTNETS.items()}
small |= {name: small_mobilenet(**arguments) for name, arguments in MOBILENETS.items()}
for name, model in small.items():
    evaluate(name, model, images(PIXELS))
    train(name, model, images(PIXELS), momentum=0.01 if name.startswith("tf_") else 0.1)

for arch in EVALUATED:
    model = timm.create_model(arch, num_classes=CLASSES, drop_rate=0.0, drop_path_rate=0.0)
    evaluate(arch, model, images(64))

np.savez_compressed(Path(__file__).with_name("convnets.npz"), **out)
