"""How a batch fits into memory, and what is said where it does not."""

import pytest

from configs import common
from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.training import fitting

GB = 1e9


def config(B=512, method="otter", **train):
    config = common.get_config(method)
    config.train.batch_size = B
    config.train.update(train)
    return config


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(fitting, "memory_of", lambda: 80 * GB)


@pytest.mark.parametrize(
    ("B", "devices", "form"),
    [(512, 1, "cached"), (32768, 1, "cached"), (65536, 1, "streaming"), (131072, 8, "cached")],
)
def test_one_matrix_is_kept_where_it_takes_an_eighth_of_memory(B, devices, form):
    assert fitting.form_of(config(B), meshes.make_mesh(devices)) == form


def test_a_form_can_be_asked_for():
    assert fitting.form_of(config(matching="dense"), meshes.make_mesh(1)) == "dense"


def test_a_batch_that_no_memory_fits_is_told_what_does():
    mesh = meshes.make_mesh(1)
    fitting.check(config(131072, matching="streaming"), mesh)
    with pytest.raises(
        UserError, match=r'"streaming" would fit; about train.batch_size=32768 fits'
    ):
        fitting.check(config(131072, matching="dense"), mesh)
    with pytest.raises(UserError, match=r"about train.batch_size=4194304 fits"):
        fitting.check(config(2**25), mesh)


@pytest.mark.parametrize(
    ("microbatch", "devices", "nearest"),
    [(100, 1, "64 or 128"), (100, 8, "64 or 128"), (3, 8, "8"), (1024, 1, "512"), (4, 8, "8")],
)
def test_parts_that_do_not_divide_are_told_the_nearest_that_do(microbatch, devices, nearest):
    with pytest.raises(UserError, match=f"train.microbatch={microbatch} .*nearest: {nearest} "):
        fitting.check(config(microbatch=microbatch), meshes.make_mesh(devices))


@pytest.mark.parametrize("microbatch", [0, 8, 64, 512])
def test_equal_parts_pass(microbatch):
    fitting.check(config(microbatch=microbatch), meshes.make_mesh(8))


def test_a_run_says_how_its_batches_are_computed():
    said = fitting.summary(config(4096, microbatch=512, remat="both"), meshes.make_mesh(8))
    assert said == {
        "batch": "4096 over 8 devices: 4095 negatives per row; embedded 512 at a time, and batch "
        "norm is over those; blocks computed twice: img and txt",
        "matching": "cached: one matrix kept, 8 MiB per device",
    }
