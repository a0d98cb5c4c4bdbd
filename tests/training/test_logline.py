"""The log line: what a method has, and nothing of what it has not."""

import pytest

from otter_jax.objective import METHODS
from otter_jax.training import contrastive, logline

ALL = {"loss": 5.0, "pairs": 6.0, "scale_pairs": 49.4, "scale_teacher": 10.0, "epoch": 1.0}
ALL |= {"pairs_per_second": 100.0, "data_wait": 0.0, "seconds_left": 5.0}
TEACHER = {"teacher": 4.0, "target_entropy": 2.0, "own_mass": 0.0, "row_error": 0.1}
TRUST = {"trust": 0.43, "distrusted": 0.21}


@pytest.mark.parametrize("taught", [{}, TEACHER])
@pytest.mark.parametrize("trusted", [{}, TRUST])
def test_a_line_has_what_the_method_has(taught, trusted):
    line = logline.of(20, 290, ALL | taught | trusted)
    assert ("teacher 4.000" in line) == ("target entropy 2.00" in line) == bool(taught)
    assert ("trust 0.43, distrusted 21% | 100 pairs/s" in line) == bool(trusted)
    assert len(max(line.splitlines(), key=len)) <= 100


def test_a_scale_at_its_limit_is_said_to_be():
    assert "scale 100.0 (at its limit)" in logline.of(1, 2, ALL | {"scale_pairs": 100.0})


def test_a_run_says_what_its_teacher_does():
    said = {name: contrastive._looks(method) for name, method in METHODS.items()}
    assert said == {
        "infonce": "none",
        "ls": "none",
        "kd": "softmax",
        "otter": "optimal transport",
        "siglip": "none",
        "softclip": "softmax",
        "trust": "trust in pairs by softmax",
        "trust_otter": "optimal transport, trust in pairs by softmax",
    }
