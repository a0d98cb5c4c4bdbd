"""Makes pictures small enough for a page."""

import io

from PIL import Image

from otter_jax.data import images

SIDE = 256  # pixels of the longer side: a picture has as many at most, whatever it was


def small(data: bytes, side: int = SIDE, *, exif: str = "apply") -> bytes:
    """Returns a picture as a JPEG of at most `side` pixels; `exif` is that of `images.decode`."""
    stored = images.shrink(data, side, format="jpeg", quality=90, exif=exif)
    img = Image.fromarray(images.decode(stored.content, exif=exif))
    img.thumbnail((side, side))
    file = io.BytesIO()
    img.save(file, "JPEG", quality=80)
    return file.getvalue()
