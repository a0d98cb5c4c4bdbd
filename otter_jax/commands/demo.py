"""Shows a model on a local page: drop a picture, type classes, see how probable each is."""

import argparse
import errno
import importlib.util
import socket
from collections.abc import Sequence

from otter_jax.commands import flags, start
from otter_jax.errors import UserError


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "demo",
        "MODEL [FLAGS]",
        "Serves a page on which a picture is dropped and classes are typed, to this machine alone "
        "unless told otherwise. Needs `pip install starlette uvicorn`.",
        ("runs/first", "runs/first --port 9000 --weights ema"),
    )
    flags.add_model(made)
    made.flag("--port", type=int, default=8000, metavar="N", help="0: any that is free [8000]")
    made.flag(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on; 0.0.0.0 lets the whole network in, without a password "
        "[127.0.0.1]",
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f"The page needs {' and '.join(missing)}: pip install {' '.join(missing)}, or install "
            'the program with its extra "demo".'
        )
    with _listening(options.host, options.port) as listening:
        start.print_loading()
        from otter_jax.demo import server
        from otter_jax.demo.session import Session

        model = flags.load_model(options)
        print(f"Model: {model.name}", flush=True)
        app = server.application(Session(model), server.names_of(options.host))
        print(f"Open {_address(listening)} in a browser. Ctrl-C ends it.", flush=True)
        server.running(app).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError if there can be none."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: give a number from 0 to 65535.")
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # a browser that comes early waits
    except OSError as error:
        if made:
            made.close()
        remedy = "give --host an address of this machine"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = "give another --port; --port 0 takes any that is free"
        raise UserError(
            f"Nothing can listen on {host}, port {port} ({error.strerror}): {remedy}."
        ) from None
    return made


def _address(listening: socket.socket) -> str:
    """Returns what a browser opens."""
    host, port, *_ = listening.getsockname()
    if host in ("0.0.0.0", "::"):  # all of this machine
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
