"""Small pictures as files hold them."""

import io

import numpy as np
from PIL import Image


def noise(number=0, format="JPEG"):
    """A picture like no other number's."""
    return encoded(
        np.random.default_rng(number).integers(256, size=(20, 20, 3), dtype=np.uint8), format
    )


def coloured(colour, seed):
    """A square of nearly one colour."""
    noise = np.random.RandomState(seed).randint(-20, 21, (40, 44, 3))
    return encoded(np.clip(np.array(colour) + noise, 0, 255), "PNG")


def encoded(pixels, format):
    """The bytes of a picture from pixels 0..255."""
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format)
    return file.getvalue()
