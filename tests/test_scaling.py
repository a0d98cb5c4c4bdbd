"""Bytes by formula, and as a compiled program says."""

import jax
import pytest

from benchmarks import hlo, scaling


@pytest.mark.parametrize("form", ["dense", "cached", "streaming"])
@pytest.mark.parametrize(("B", "P"), [(64, 2), (512, 8)])
def test_the_program_sends_what_the_formula_says(B, P, form):
    text = scaling.compiled(B, jax.devices()[:P], form).as_text()
    more = sum(c.sent(P) for c in hlo.collectives(text)) - scaling.sent(B, P, form)
    assert 0 <= more < 100  # scalars


def test_a_gpu_s_collectives_are_read_too():
    """They start and end apart, and what starts is named with its operand."""
    text = """
%body (p: f32[2,1,64]) -> f32[2,1,64] {
  %s = f32[2,1,64]{2,1,0} all-reduce-start(%p), to_apply=%add
  ROOT %d = f32[2,1,64]{2,1,0} all-reduce-done(%s)
}

ENTRY %main (p: f32[8,24]) -> f32[8,24] {
  %g = (f32[8,24]{1,0}, f32[64,24]{1,0}) all-gather-start(%p), dimensions={0}
  %w = f32[2,1,64] while(%x), body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %r = ((f32[64,24]{1,0}), f32[8,24]{1,0}) reduce-scatter-start(%y), dimensions={0}
}
"""
    assert hlo.collectives(text) == [
        ("all-reduce", [(2, 1, 64)], 512, 4),
        ("all-gather", [(64, 24)], 6144, 1),
        ("reduce-scatter", [(8, 24)], 768, 1),
    ]


def test_gathering_both_matrices_is_7_5_gigabytes():
    """At 32k on 8 devices: all of two B x B matrices but the device's own rows."""
    matrices = scaling.sent_released(32768, 8) - 7 / 8 * 16 * 32768 * scaling.D
    assert round(matrices / 1e9, 1) == 7.5


@pytest.mark.parametrize(
    ("number", "text"),
    [(2e3, "2 kB"), (1.234e6, "1.23 MB"), (45.6e6, "45.6 MB"), (439e9, "439 GB")],
)
def test_an_amount_has_three_digits(number, text):
    assert scaling.amount(number) == text


def test_bytes_are_those_that_kernels_read_and_write():
    text = """
HloModule small
%inner (x: f32[8]) -> f32[8] {
  ROOT %twice = f32[8]{0} add(%x, %x)
}
ENTRY %main (p: bf16[4,8], q: pred[4]) -> (f32[8], u8[2]) {
  %p = bf16[4,8]{1,0} parameter(0), metadata={op_name="f32[1000]"}
  %q = pred[4]{0} parameter(1)
  %sum = (f32[8]{0}, u8[2]{0}) fusion(%p, %q), kind=kLoop, calls=%inner
  %first = f32[8]{0} get-tuple-element(%sum), index=0
  %copy.1 = f32[8]{0} copy(%first), metadata={op_name="copy"}
  ROOT %out = (f32[8]{0}) tuple(%copy.1)
}
"""
    assert hlo.bytes_moved(text) == (64 + 4 + 32 + 2) + (32 + 32)
