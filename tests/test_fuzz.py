"""Files of every kind, damaged in 2,000 ways, are read, tallied or refused (tests/fuzz.py)."""

import fuzz


def test_damaged_files_end_well(tmp_path):
    told = []
    counts = fuzz.fuzz(range(2_000), workers=2, keep=tmp_path / "kept", tell=told.append)
    bad = {what: n for what, n in counts.items() if what[1] not in fuzz.WELL}
    assert not bad, "\n".join(told)
    assert sum(counts.values()) == 2_000
    assert min(counts[kind, "tallied"] for kind in ("table", "web_dataset", "tree", "image")) > 50
    assert {what for _, what in counts} == set(fuzz.WELL)
