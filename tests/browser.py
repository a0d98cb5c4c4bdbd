"""Opens pages in a headless Chromium, if one is installed, and tells what is there."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
MISSING = "no Chromium is installed: bash .ci/browser.sh does it"


def program():
    """The path of a Chromium, None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page in a browser of its own; `complaints` is what its console said."""

    def __init__(self, ask):
        self._ask, self.complaints = ask, []

    def open(self, address, width, dark=False):
        """Opens a file or an address in a window of this width, and waits until all is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        if isinstance(address, pathlib.Path):
            address = address.absolute().as_uri()
        self._ask("Page.navigate", url=address)
        deadline = time.monotonic() + 60
        while self.value("document.readyState + location.href") != f"complete{address}":
            assert time.monotonic() < deadline, f"{address} was not loaded"
            time.sleep(0.05)

    def value(self, script):
        """What an expression of JavaScript is on this page."""
        found = self._ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def choose(self, selector, path):
        """Gives a file to an <input type=file>, as if a person had chosen it."""
        found = self._ask("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        node = {"objectId": found["result"]["objectId"]}
        self._ask("DOM.setFileInputFiles", files=[str(path)], **node)

    def picture(self, path):
        """Writes the whole page as a PNG."""
        found = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        pathlib.Path(path).write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def opened():
    """A `Page`, as long as this context lasts."""
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        theirs, ours = os.pipe()
        answers, said = os.pipe()

        # Chromium reads from 3 and writes to 4. A shell puts them there: a function to be called
        # between fork and exec is no good beside JAX's threads.
        moved = f'exec "$0" "$@" 3<&{theirs} 4>&{said}'
        process = subprocess.Popen(
            ["bash", "-c", moved, program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs, said), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        os.close(theirs)
        os.close(said)
        out = stack.enter_context(os.fdopen(ours, "wb", 0))
        into = stack.enter_context(os.fdopen(answers, "rb"))
        numbers, rest, session = itertools.count(1), bytearray(), {}

        def message():
            while b"\0" not in rest:
                rest.extend(into.read1(1 << 16) or b'{"id": -1}\0')
            text, _, after = bytes(rest).partition(b"\0")
            rest[:] = after
            return json.loads(text)

        def ask(method, **options):
            number = next(numbers)
            asked = {"id": number, "method": method, "params": options, **session}
            out.write(json.dumps(asked).encode() + b"\0")
            while True:
                found = message()
                assert found.get("id") != -1, "Chromium has ended"
                name, about = found.get("method"), found.get("params", {})
                if name == "Log.entryAdded":
                    page.complaints.append(about["entry"]["text"])
                elif name == "Runtime.exceptionThrown":
                    page.complaints.append(str(about["exceptionDetails"]))
                elif name == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
                    page.complaints.append(str(about["args"]))
                if found.get("id") == number:
                    assert "error" not in found, found
                    return found["result"]

        page = Page(ask)
        targets = ask("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        session["sessionId"] = ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            ask(f"{domain}.enable")
        yield page
