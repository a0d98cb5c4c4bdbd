"""Small convolutional encoders: what make_convnets.py computes with and the tests compare with."""

PIXELS = 36  # on the way, odd sizes are halved
RESNET = {
    "stage_sizes": (1, 1, 1, 1),
    "block": "bottleneck",
    "channels": (8, 8, 12, 16),
    "deep": True,
}
EFFICIENTNET = {
    "width_factor": 0.5,
    "stages": ((1, 16, 1, 3, 1), (2, 24, 6, 3, 2), (1, 40, 6, 5, 2)),
}
EFFICIENTNETS = {
    "efficientnet": EFFICIENTNET,
    "tf_efficientnet_lite": EFFICIENTNET | {"lite": True, "tensorflow": True},
}
MOBILENET = {
    "stages": (
        ((1, 16, 1, 3, 1, True),),
        ((1, 24, 4.5, 3, 2, False), (1, 24, 3.67, 3, 1, False)),
        ((1, 40, 3, 5, 2, True),),
    ),
    "channels": (16, 64, 48),
}
MOBILENETS = {
    "mobilenetv3": MOBILENET | {"relu_stages": 2},
    "fbnetv3": MOBILENET | {"kind": "fbnetv3"},
}
