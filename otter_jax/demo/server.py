"""Serves the page and answers its questions over HTTP.

What the server trusts: nobody. A request must name a host that is this machine (another site's
page could otherwise reach it under a name of its own), come from this page if it comes from one,
and be small; what it says is never taken for a path. The files of the page are read at the start,
and nothing else is.
"""

import asyncio
import ipaddress
import json
import pathlib
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from otter_jax.demo.session import Forgotten, Session
from otter_jax.errors import UserError

PICTURE = 20 << 20  # bytes of an upload
QUESTION = 1 << 20  # bytes
WAITING = 16  # pictures and questions that are worked on or wait; others are told to come again
BACKLOG = 512  # connections that the kernel lets wait, and that are taken in one go
SECONDS = 30.0  # in which a request, and then what it uploads, must be there
# Names of the thread that computes: `commands.start` does not wait for one that may compile.
IDLE, BUSY = "model", "compiler"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",  # so that `_Connection` needs to wait for one request only
}


class Refused(UserError):
    """Raised for a request that is not answered; holds the status beside why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


def application(session: Session, names: Sequence[str]) -> ASGIApp:
    """Returns what answers requests; `names` are those that this machine is called by."""
    folder = pathlib.Path(__file__).parent
    files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
    model = session.model.name.replace(str(session.model.folder), session.model.folder.name)
    pool, slots = ThreadPoolExecutor(1, IDLE), asyncio.Semaphore(WAITING)

    async def worked(request: Request, most: int, work: Callable[[bytes], Any]) -> Response:
        if slots.locked():
            raise Refused(503, "Too many questions at once: ask again in a moment.")
        async with slots:  # at once, since none waits here
            body = await _body(request, most)
            answer = await asyncio.get_running_loop().run_in_executor(pool, _in_time, work, body)
            return JSONResponse(answer)

    async def page(request: Request) -> Response:
        content, kind = files[request.url.path]
        return Response(content, media_type=kind)

    async def about(request: Request) -> Response:
        return JSONResponse({"model": model, "bytes": PICTURE})

    async def pictures(request: Request) -> Response:
        return await worked(request, PICTURE, lambda body: {"picture": session.add(body)})

    async def ask(request: Request) -> Response:
        def work(body: bytes) -> dict[str, Any]:
            found = session.ask(*_question(body))
            return {"guesses": [guess._asdict() for guess in found.guesses], "notes": found.notes}

        return await worked(request, QUESTION, work)

    routes = [Route(path, page) for path in FILES]
    routes += [
        Route("/about", about),
        Route("/pictures", pictures, methods=["POST"]),
        Route("/ask", ask, methods=["POST"]),
    ]
    told = {UserError: _told, HTTPException: _told, ClientDisconnect: _left, Exception: _broken}
    return _Guarded(Starlette(routes=routes, exception_handlers=told), names)


def _in_time(work: Callable[[bytes], Any], body: bytes) -> Any:
    """Calls `work`, in a thread that a stop does not wait for as long as it works."""
    thread = threading.current_thread()
    thread.name = BUSY
    try:
        return work(body)
    finally:
        thread.name = IDLE


def running(app: ASGIApp) -> uvicorn.Server:
    """Returns the server; its `run` answers requests until a signal, which is then passed on."""
    settings = uvicorn.Config(
        app,
        http=_Connection,
        loop="asyncio",  # uvloop, if it is there, drops connections where files run out
        ws="none",
        lifespan="off",
        log_config=None,  # our own streams stay as they are
        log_level="error",
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(settings)


def names_of(host: str) -> list[str]:
    """Returns the names by which a browser may call a server that listens on `host`."""
    names = ["localhost", host]
    if host not in ("127.0.0.1", "localhost", "::1"):
        names += [socket.gethostname(), socket.getfqdn()]
    return [name.lower() for name in names]


class _Connection(H11Protocol):
    """Ends a connection on which no whole request comes."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(SECONDS, self._end_if_silent)

    def _end_if_silent(self) -> None:
        if self.cycle is None:  # no request has begun
            self.transport.close()


class _Guarded:
    """Answers requests that are meant for this server alone, all with the same headers."""

    def __init__(self, app: ASGIApp, names: Sequence[str]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            _check(Request(scope), self._names)
        except Refused as error:
            await (await _told(None, error))(scope, receive, headed)
        else:
            await self._app(scope, receive, headed)


def _check(request: Request, names: Sequence[str]) -> None:
    """Raises Refused for a request that was meant for another host, or comes from another page.

    An address is no name that others could have pointed here.
    """
    host = request.headers.get("host", "").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name not in names and not _is_address(name.strip("[]")):
        raise Refused(
            421, f"This server does not go by the name {name[:100]!r}: open it by its address."
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host:
        raise Refused(403, "This question comes from another page.")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _body(request: Request, most: int) -> bytes:
    """Returns what was sent. Raises Refused if it is too much, or takes too long."""
    too_much = Refused(413, f"This is more than the {most >> 20} MiB that are taken.")

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise too_much
        return bytes(body)

    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 12 or int(length) > most):
        raise too_much
    try:
        return await asyncio.wait_for(read(), SECONDS)
    except TimeoutError:
        raise Refused(408, "The upload took too long.") from None


def _question(body: bytes) -> tuple[str, str, list[str], bool]:
    """Returns picture, classes, templates and multi of a question. Raises Refused if it is none."""
    try:
        asked = json.loads(body)
        picture, classes, templates = (asked[key] for key in ("picture", "classes", "templates"))
        "".join([picture, classes, templates]).encode()  # texts, with no half of a surrogate pair
        if not isinstance(asked["multi"], bool):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused(
            400, "This is no question: JSON with texts picture, classes, templates, and bool multi."
        ) from None
    lines = [line.strip() for line in templates.splitlines()]
    return picture, classes, list(filter(None, lines)), asked["multi"]


async def _told(request: Request | None, error: UserError | HTTPException) -> Response:
    """Says what was wrong with a request."""
    match error:
        case HTTPException():
            return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
        case Refused(status=503):
            return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": "1"})
        case Refused():
            return JSONResponse({"error": str(error)}, error.status)
        case Forgotten():
            return JSONResponse({"error": str(error)}, 410)
    return JSONResponse({"error": str(error)}, 400)


async def _left(request: Request, error: ClientDisconnect) -> Response:
    """Answers nobody."""
    return Response(status_code=400)


async def _broken(request: Request, error: Exception) -> Response:
    """Says that it is not the request's fault; uvicorn prints the error on stderr."""
    return JSONResponse({"error": "The server made a mistake, and says which on its console."}, 500)
