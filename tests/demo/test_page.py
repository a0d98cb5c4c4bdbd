"""The page of the demo in a browser: a picture is chosen, classes are typed, bars are read."""

import time

import browser
import numpy as np
import pytest
from pictures import encoded

NAMES = "[...document.querySelectorAll('#guesses bdi')].map(e => e.textContent).join()"
NOTES = "document.querySelector('#notes').textContent"


def wait(page, script, expected):
    """Waits until an expression has this value."""
    deadline = time.monotonic() + 60
    while (found := page.value(script)) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def typed(page, field, text):
    page.value(
        f"{field}.value = {text!r}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


@pytest.mark.skipif(browser.program() is None, reason=browser.MISSING)
def test_a_picture_is_chosen_and_its_bars_are_read(demo, tmp_path):
    file = tmp_path / "green.png"
    file.write_bytes(encoded(np.full((8, 8, 3), (0, 250, 0), np.uint8), "PNG"))
    with browser.opened() as page:
        page.open(f"http://127.0.0.1:{demo.port}/", 400)
        wait(page, "document.querySelector('#model').textContent", "first, step 3")
        page.choose("#file", file)
        wait(page, NAMES, "cat,bicycle,cup of coffee,dog")
        assert page.value("document.querySelector('progress').value") > 0.9
        assert page.value("document.querySelector('#picture').naturalWidth") == 8
        wait(page, NOTES, "1 class is none but unknown tokens.")
        typed(page, "classes", "sofa, <b>dog</b>")
        wait(page, NAMES, "<b>dog</b>,sofa")
        demo.session._pictures._kept.clear()  # is sent again
        typed(page, "classes", "cat")
        wait(page, NAMES, "cat")
        assert page.value(NOTES).startswith("'cat' is the only class")
        assert page.value("document.documentElement.scrollWidth") == 400
        assert [words for words in page.complaints if "status of 410" not in words] == []
        typed(page, "templates", "a photo")
        wait(page, NAMES, "")
        assert "The template 'a photo' has no {}" in page.value(NOTES)
