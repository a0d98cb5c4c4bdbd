"""A demo of a model that nobody trained, served in a thread as the command serves it."""

import pathlib
import socket
import threading
import types

import numpy as np
import pytest

from otter_jax.demo import server
from otter_jax.demo.session import Session
from otter_jax.predict.model import Model
from otter_jax.predict.pixels import pixels_of

NAMES = ["dog", "cat", "sofa", "something"]


class Colours(Model):
    """Sees a dog in red pictures, a cat in green ones, and a sofa in blue ones."""

    name, folder = "/home/me/runs/first, step 3", pathlib.Path("/home/me/runs/first")
    image_size, scale = 8, 10.0

    def __init__(self):
        self.banks = []

    def read(self, picture):
        assert isinstance(picture, bytes)
        return pixels_of(picture)[:8, :8]

    def embed_pixels(self, pixels):
        vectors = np.pad(pixels.mean(axis=(1, 2)), ((0, 0), (0, 1)), constant_values=60)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def bank(self, names, templates, cached=True, tell=None):
        assert not cached
        assert isinstance(templates, tuple)
        self.banks.append((names, templates))
        if ("broken",) in names:
            raise ZeroDivisionError("a secret of the server")
        known = [NAMES.index(name) if name in NAMES else 3 for (name, *_) in names]
        if 3 in known:
            tell("1 class is none but unknown tokens.")
        return np.eye(4, dtype=np.float32)[known]

    def floor(self, templates, cached=True):
        assert not cached
        return np.eye(4, dtype=np.float32)[3]


@pytest.fixture(scope="session")
def demo():
    """The `address` of a server, and the `model` and `session` that it asks."""
    model = Colours()
    session = Session(model)
    app = server.application(session, server.names_of("127.0.0.1"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        running = server.running(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield types.SimpleNamespace(port=port, model=model, session=session)
        running.should_exit = True
        thread.join(30)
