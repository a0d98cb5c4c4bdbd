"""A checkpoint of the released PyTorch code becomes a run, whole or not at all."""

from collections import OrderedDict

import jax
import numpy as np
import pytest
import tiny
from pickles import Run, tensor, write_legacy, write_zip

from otter_jax.errors import UserError
from otter_jax.weights import encoders, naming, otter_release

MODEL, LIKE = tiny.towers(), tiny.variables()


def state_dict(seed=0, prefix=""):
    """A model's tensors under that code's names, with what it has and we have not."""
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), LIKE)
    state = naming.export(variables, otter_release.family_of(MODEL))
    state["image_encoder.model.bn1.num_batches_tracked"] = np.array(7)
    state["text_encoder.model.pooler.dense.bias"] = np.zeros(16, np.float32)
    state["text_encoder.model.embeddings.position_ids"] = np.arange(12)[None]
    return variables, {prefix + name: value for name, value in state.items()}


def write(path, state, writer=write_zip, **more):
    """As that code saves: optimiser, schedule and arguments are in the same pickle."""
    tensors = OrderedDict((name, tensor(value)) for name, value in state.items())
    momentum = {"momentum_buffer": tensor(np.zeros(3, np.float32))}
    tree = {
        "epoch": 10,
        "state_dict": tensors,
        "optimizer": {"state": {0: momentum}, "param_groups": [{"lr": 0.003, "params": [0]}]},
        "lr_scheduler": {"T_max": 10, "base_lrs": [0.003], "_last_lr": [0.0]},
        "args": {"image_arch": "resnet50", "dist_url": "env://", "gpu": 0, "resume": None},
    }
    writer(path, tree | more)
    return path


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_names_are_those_of_that_code():
    """As facebookresearch/OTTER at 605d317 has them; the encoders' own are tested elsewhere."""
    found = {name for name in state_dict()[1] if ".model." not in name}
    assert found == {
        "contrastive_loss.loss.T",
        "dist_loss.T_s",
        "text_encoder.fc.weight",
        "text_encoder.fc.bias",
    }
    image = {name for name in state_dict()[1] if name.startswith("image_encoder.model.fc")}
    assert image == {"image_encoder.model.fc.weight", "image_encoder.model.fc.bias"}


@pytest.mark.parametrize("writer", [write_zip, write_legacy])
@pytest.mark.parametrize("wrapped", ["", "module."])
def test_a_distilled_checkpoint_gives_student_and_teacher(writer, wrapped, tmp_path):
    student, state = state_dict(0, f"{wrapped}student.")
    teacher, more = state_dict(1, f"{wrapped}teacher.")
    temperature = state.pop(f"{wrapped}student.dist_loss.T_s")  # it belongs to neither model
    del more[f"{wrapped}teacher.dist_loss.T_s"]
    state |= more | {f"{wrapped}dist_loss.T_s": temperature}
    path = write(tmp_path / "best.pth.tar", state, writer)
    loaded = otter_release.load(path, MODEL, LIKE)
    teacher["params"]["log_scale"]["teacher"] = temperature
    same({name: loaded[name] for name in student}, student)
    same(loaded["teacher"], teacher)
    assert loaded["params"]["log_scale"]["pairs"].shape == ()


def test_the_second_temperature_is_found_under_the_students_prefix_too(tmp_path):
    student, state = state_dict(0, "student.")
    loaded = otter_release.load(write(tmp_path / "best.pth.tar", state), MODEL, LIKE)
    same(loaded, student)


def test_two_students_in_one_file_are_an_error(tmp_path):
    state = state_dict(0)[1] | state_dict(1, "student.")[1]
    with pytest.raises(UserError, match="has some tensors twice"):
        otter_release.load(write(tmp_path / "best.pth.tar", state), MODEL, LIKE)


def test_any_image_encoder_has_timms_names_behind_the_prefix():
    model = MODEL.clone(img=encoders.load_image("", arch="vit_small_patch32_224").module)
    path = ("params", "img", "patch_embed", "kernel")
    assert naming.file_names(path, otter_release.family_of(model)) == (
        "image_encoder.model.patch_embed.proj.weight",
    )


@pytest.mark.parametrize("name", ["contrastive_loss.loss.T", "contrastive_loss.T"])
def test_a_contrastive_checkpoint_gives_a_student_without_a_teacher(name, tmp_path):
    student, state = state_dict()
    del state["dist_loss.T_s"]
    state[name] = state.pop("contrastive_loss.loss.T")
    loaded = otter_release.load(write(tmp_path / "last.pth.tar", state), MODEL, LIKE)
    assert "teacher" not in loaded
    student["params"]["log_scale"]["teacher"] = np.float32(3.9)
    same(loaded, student)


def test_another_models_checkpoint_is_one_error_that_lists_what_differs(tmp_path):
    _, state = state_dict()
    state["text_encoder.model.encoder.layer.1.output.dense.bias"] = np.zeros(16, np.float32)
    state["text_encoder.fc.weight"] = np.zeros((7, 16), np.float32)
    del state["image_encoder.model.conv1.weight"]
    path = write(tmp_path / "last.pth.tar", state)
    with pytest.raises(UserError) as error:
        otter_release.load(path, MODEL, LIKE)
    message = str(error.value)
    for part in (
        f"{path} does not hold the weights of this model",
        "1 missing (image_encoder.model.conv1.weight)",
        "1 unexpected (text_encoder.model.encoder.layer.1.output.dense.bias)",
        "1 of another shape (text_encoder.fc.weight (7, 16) for (6, 16))",
    ):
        assert part in message


def test_a_checkpoint_with_nan_is_refused_by_the_tensors_that_have_it(tmp_path):
    _, state = state_dict()
    name = "text_encoder.model.encoder.layer.0.output.dense.bias"
    state[name] = np.full(16, np.nan, np.float32)
    with pytest.raises(UserError, match=rf"NaN or infinity in 1 of .*{name}: 16 of 16"):
        otter_release.load(write(tmp_path / "last.pth.tar", state), MODEL, LIKE)


def test_a_damaged_or_a_malicious_checkpoint_is_refused(tmp_path):
    _, state = state_dict()
    path = write(tmp_path / "last.pth.tar", state, args=Run(f"touch {tmp_path / 'it-ran'}"))
    with pytest.raises(UserError, match="was not run"):
        otter_release.load(path, MODEL, LIKE)
    assert not (tmp_path / "it-ran").exists()
    path = write(path, state)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="complete"):
        otter_release.load(path, MODEL, LIKE)
