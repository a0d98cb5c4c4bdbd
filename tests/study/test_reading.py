"""Mistakes in a study file: each is one sentence that names the key."""

import pytest
import studies

from otter_jax.errors import UserError
from otter_jax.study import reading

WRONG = {  # what is replaced, by what, and words of the answer
    "method": ("infonce = {}", 'infonce.method = "infonse"', "did you mean 'infonce'"),
    "line": ("infonce = {}", "infonce = {}\ninfonse = {}", "infonse' is not there"),
    "field": (
        "infonce = {}", "infonce.objective.smothing = 0.1", "did you mean 'smoothing'"
    ),
    "value": ("infonce = {}", "infonce.objective.smoothing = 2.0", "from 0.0 to 1.0"),
    "chosen value": ("epsilon = [0.15]", "epsilon = [0.15, -1.0]", "must be positive"),
    "no list": ("epsilon = [0.15]", "epsilon = 0.15", "a list of values"),
    "train": ("infonce = {}", "infonce.train.ema_decai = 0.9", "did you mean 'ema_decay'"),
    "length": ("infonce = {}", "infonce.train.pairs = 7", "infonce: train.pairs=7 is less"),
    "trained": ("infonce = {}", 'infonce.train.trained = "heads"', "there is no key 'trained'"),
    "key": ("[train]\npairs", "[train]\npars", "did you mean 'pairs'"),
    "missing key": ("pairs = 96", "", "train.pairs is missing"),
    "top key": ("seeds = 2\nbase", "sets = 2\nbase", "there is no key 'sets'"),
    "section": ("[choose]\nseeds", "[chosen]\nseeds", "did you mean 'choose'"),
    "type": ("pairs = 96", 'pairs = "96"', "a whole number"),
    "baseline": ('baseline = "infonce"', 'baseline = "oter"', "did you mean 'otter'"),
    "set": ('set = "mine"', 'set = "mime"', "did you mean 'mine'"),
    "noise": ("noise = [0.0, 0.5]", "noise = 1.5", "from 0 to 1"),
    "rate": ("learning_rate = [1e-2, 3e-2]", "learning_rate = [-1.0]", "numbers above 0"),
    "search": ('search = "name"', 'search = "nam"', "one of name"),
    "resize": ("max_tokens = 8", "resize = 31", "resize=31: 0, or at least data.image_size=32"),
    "views": ("max_tokens = 8", "views = -1", "views=-1: from 0"),
    "no views": ("max_tokens = 8", "flip = true", "none: set data.views"),
    "no noise": ("noise = [0.0, 0.5]", "noise = []", "a value, or a list of them"),
    "no start": ("log_scale = [2.0]", "log_scale = []", "choose.log_scale=.*a list of values"),
    "no measure": ("log_scale = [2.0]", "log_scale = [2.0]\nby = []", "a list of measures"),
    "start": ("log_scale = [2.0]", "log_scale = [nan]", "log_scale=.*numbers"),
    "twice": ("epsilon = [0.15]", "epsilon = [0.15, 0.15]", "a value stands twice"),
    "rate twice": ("learning_rate = [1e-2, 3e-2]", "learning_rate = [1e-2, 0.01]", "twice"),
    "text": ("epsilon = [0.15]", 'epsilon = ["a"]', "epsilon='a': a number"),
    "own rate": ("epsilon = [0.15]", "learning_rate = [-1.0]", "numbers above 0"),
    "no table": ("infonce = {}", "infonce = 3", "infonce=3: a table"),
    "no objective": ("infonce = {}", "infonce.objective = 3", "objective=3: a table"),
    "decay": ("infonce = {}", "infonce.train.ema_decay = 2.0", "train.ema_decay=2.0: at least 0"),
    "optimiser": ("pairs = 96", 'pairs = 96\nname = "adam"', 'train.name=\'adam\': "sgd" or'),
    "seeds": ("seeds = 2\nbase", "seeds = true\nbase", "seeds=True: a whole number"),
    "no baseline": ('baseline = "infonce"', "baseline = []", r"baseline=\[\]: a text"),
    "folder": ("infonce = {}", "infonce = {}\n'a/../b'.method = 'kd'", "no slash, no dot"),
    "toml": ("[train]", "[train", "no TOML"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_mistake_is_named(kind, tmp_path):
    old, new, words = WRONG[kind]
    assert old in studies.FILE
    path = tmp_path / "study.toml"
    path.write_text(studies.FILE.replace(old, new, 1))
    with pytest.raises(UserError, match=words) as error:
        reading.read(path)
    assert str(path) in str(error.value)


def test_values_are_chosen_beside_a_methods_own(tmp_path):
    path = tmp_path / "study.toml"
    own = 'objective.teacher = "softmax"\nchoose.alpha = [0.5]'
    path.write_text(f'{studies.FILE}\n[methods.mine]\nmethod = "infonce"\n{own}\n')
    assert reading.read(path).methods["mine"].choose == {"alpha": (0.5,)}


def test_no_file_is_said(tmp_path):
    with pytest.raises(UserError, match="There is no study file"):
        reading.read(tmp_path / "study.toml")


def test_closed_forms_are_for_heads(tmp_path):
    path = tmp_path / "study.toml"
    text = studies.FILE.replace("infonce = {}", "infonce = {}\nridge = {}")
    path.write_text(text.replace("pairs = 96", 'pairs = 96\ntrained = "blocks_6_0"'))
    with pytest.raises(UserError, match=r"methods\.ridge is a closed form"):
        reading.read(path)


def test_settings_are_products_of_lists_each_once(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(studies.FILE + '\n[[settings]]\nset = "mine"\nnoise = 0.5\nbatch = [8, 16]\n')
    found = [(s.noise, s.batch) for s in reading.read(path).settings]
    assert found == [(0.0, 8), (0.5, 8), (0.5, 16)]
