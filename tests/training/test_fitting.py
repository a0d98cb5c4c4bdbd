"""How a batch fits into memory, and what is said where it does not."""

import pytest

from configs import common
from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.training import compiling, fitting

GB, MIB = 1e9, 2**20


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
        UserError, match=r'"streaming" would fit; about train.batch_size=57352 fits'
    ):
        fitting.check(config(131072, matching="dense"), mesh)
    with pytest.raises(UserError, match=r"about train.batch_size=4340277 fits"):
        fitting.check(config(2**25), mesh)
    with pytest.raises(UserError, match=r"one would have 100003 rows.*Nearest.* 99968 or 100032\."):
        fitting.check(config(100_003), mesh)


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


def need(once, grows):
    return compiling.Need((once + grows) * MIB, once * MIB, grows * MIB)


@pytest.mark.parametrize(
    ("once", "grows", "said"),
    [  # 64 * (900 - 100) / 1600
        (100, 1600, r"needs 1,700 MiB .*1,000 MiB. About train.microbatch=32 .* or train.batch_siz"
        r"e=32 would fit; more devices, train.remat=both, model.dtype=bfloat16 or a smaller"),
        (1100, 10, "No batch would fit"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_fit_is_refused_with_what_could(once, grows, said, monkeypatch):
    for module in (compiling, fitting):
        monkeypatch.setattr(module, "memory_of", lambda: 1000 * MIB)
    mesh = meshes.make_mesh(8)
    for fits in (need(100, 800), None):  # which is not known
        fitting.check_need(fits, config(64), mesh)
    with pytest.raises(UserError, match=said):
        fitting.check_need(need(once, grows), config(64), mesh)


def test_a_run_says_how_its_batches_are_computed():
    said = fitting.summary(config(4096, microbatch=512, remat="both"), meshes.make_mesh(8))
    assert said == {
        "batch": "4096 over 8 devices: 4095 negatives per row; embedded 512 at a time, and batch "
        "norm is over those; blocks computed twice: img and txt",
        "matching": "cached: one matrix kept, 8 MiB per device",
    }
