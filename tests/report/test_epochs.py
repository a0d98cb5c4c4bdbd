"""The results of a transfer, as its report reads them."""

import json

from otter_jax.report.transfer import epochs_of


def test_the_results_of_a_run_are_read_past_stray_and_damaged_files(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    good = {"step": 9, "epoch": 1, "phase": "Fab", "top1": 0.5}
    (results / "step_00000009.json").write_text(json.dumps(good))
    (results / "step_00000018.json").write_text('{"step": 18, "ep')
    (results / "step_00000027.json").write_text("[]")
    (results / "notes.json").write_text(json.dumps(good))
    assert list(epochs_of(tmp_path)) == [good]
