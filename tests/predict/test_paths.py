"""Any path that a file system allows is one line of valid Unicode, and comes back."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otter_jax.predict.paths import restored, written


@given(st.binary(min_size=1).filter(lambda path: b"\0" not in path))
@example(b"a\\nb")
@example(b"\\xff\xff\n\r\x7f")
def test_a_path_is_one_line_and_comes_back(raw):
    path = os.fsdecode(raw)
    text = written(path)
    assert restored(text) == path
    assert not set(text) & set("\n\r\t\x1b\x7f")
    text.encode()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'photos/a b, "c".jpg', 'photos/a b, "c".jpg'),
        ("日本/ü.jpg".encode(), "日本/ü.jpg"),
        (b"a\nb\\c\xe9.jpg", r"a\nb\\c\xe9.jpg"),
    ],
)
def test_only_what_breaks_a_table_is_escaped(raw, text):
    assert written(os.fsdecode(raw)) == text
