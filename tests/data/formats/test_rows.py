"""Rows of CSV are read as they were meant, or counted, and never joined with others."""

import io

import pytest

from otter_jax.data.formats.lines import Lines
from otter_jax.data.formats.rows import ESCAPED, LINES, STRAY, rows_of, rows_of_tsv


def rows(text, width=2, delimiter=","):
    """What is read of each row: its fields, or its error; and its note."""
    lines = Lines(io.BytesIO(text.encode()))
    return [(row.fields or row.error, row.note) for row in rows_of(lines, delimiter, width)]


@pytest.mark.parametrize(
    ("line", "caption", "note"),
    [
        ('a,"b ""c"", d"', 'b "c", d', ""),
        ('a, "two words, more"', "two words, more", ""),
        ('a,"x\ny"', "x\ny", ""),
        ('a,"path C:\\"', "path C:\\", ""),
        ('a,"[""x \\""q\\"" y"", ""z""]"', '["x \\"q\\" y", "z"]', ""),
        ('a,"she said \\"no\\", then"', 'she said "no", then', ESCAPED),
        ("a,two\\, words", "two, words", ESCAPED),
        ('a,"ends \\""', 'ends "', ESCAPED),
        ('a,"\\"\\""', '""', ESCAPED),
        ('a,"two \\"lines\\"\nof it"', 'two "lines"\nof it', ESCAPED),
        ('a,"say "hi" now"', 'say "hi" now', STRAY),
        ('a,"Jaws" is a film', '"Jaws" is a film', STRAY),
        ('a, "quoted" said he', ' "quoted" said he', STRAY),
        ("a,5\" tall", '5" tall', ""),
    ],
)  # fmt: skip
def test_a_row_is_read_as_it_was_meant_and_so_is_the_next(line, caption, note):
    for after in ("z,last", 'z,"last"'):
        assert rows(f"{line}\n{after}\n") == [(["a", caption], note), (["z", "last"], "")]
    assert rows(line) == [(["a", caption], note)]


@pytest.mark.parametrize("line", ['a,"never closed', "a,b,c", 'a,"b" c" d', "a"])
def test_a_row_that_cannot_be_read_costs_itself_alone(line):
    found = rows(f'x,first\n{line}\ny,second\nz,"third"\n')
    assert [fields for fields, _ in found if isinstance(fields, list)] == [
        ["x", "first"], ["y", "second"], ["z", "third"],
    ]  # fmt: skip
    assert len(found) == 4


def test_a_quote_that_is_not_closed_swallows_no_more_than_some_lines():
    text = 'a,"never closed\n' + "b,c\n" * (LINES + 5) + 'd,"e"\n'
    found = rows(text)
    assert "over 20 lines" in found[0][0]
    assert len(found) == LINES + 7


def test_a_long_line_of_stray_quotes_takes_no_time():
    assert rows("a," + '"x,' * 300_000 + "\nz,last\n")[-1] == (["z", "last"], "")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('a\t"two\nlines"\nz\tlast\n', [["a", "two\nlines"], ["z", "last"]]),
        ('"two\r\n\r\n""lines"""\tb\r\nz\tlast', [['two\r\n\r\n"lines"', "b"], ["z", "last"]]),
        ('a\t"Stray, he said\nz\tlast\n', [["a", '"Stray, he said'], ["z", "last"]]),
        ('a\t"Stray\nz\tlast"\n', [["a", '"Stray'], ["z", 'last"']]),
        ('a\t"Stray\n\nz\tlast\n', [["a", '"Stray'], ["z", "last"]]),
        ('a\t"Stray', [["a", '"Stray']]),
    ],
)
def test_a_quoted_field_of_tsv_spans_lines_that_are_no_rows_and_a_stray_quote_is_a_letter(
    text, fields
):
    lines = Lines(io.BytesIO(text.encode()))
    assert [row.fields for row in rows_of_tsv(lines, 2) if row.fields] == fields


def test_a_quote_of_tsv_that_is_never_closed_costs_no_row():
    text = 'a\t"open\n' + "no row\n" * 2 * LINES + "z\tlast\n"
    found = list(rows_of_tsv(Lines(io.BytesIO(text.encode())), 2))
    assert [row.fields for row in found if not row.error] == [["a", '"open'], ["z", "last"]]
    assert [row.error for row in found if row.error] == ["1 columns instead of 2"] * 2 * LINES
