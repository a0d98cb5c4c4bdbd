"""Metrics of a run that goes on: what came after its checkpoint goes, damaged lines too."""

import json

from otter_jax.training.meters import Scalars


def test_lines_and_results_of_later_steps_and_damaged_ones_go(tmp_path):
    lines = [
        b'{"step": 1, "loss": 2.0}',
        b'{"step": 3}',
        b'{"step": "x"}',
        b"7",
        b'{"st',
        b"\xff\xfe",
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "results").mkdir()
    names = ("step_00000002.json", "step_00000002.1a2b3c4d.json", "step_00000003.json",
             "step_00000003.1a2b3c4d.json", "step_of_mine.json", "notes.txt")  # fmt: skip
    for name in names:
        (tmp_path / "results" / name).touch()
    scalars = Scalars(tmp_path, 2)
    scalars.write(3, {"loss": 1.0})
    scalars.close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    left = {path.name for path in (tmp_path / "results").iterdir()}
    assert left == set(names) - {"step_00000003.json", "step_00000003.1a2b3c4d.json"}
