"""README and docs/ are true: links, files and commands that they name are there and understood."""

import importlib
import pathlib
import re
import shlex
import tomllib

import pytest

import otter_jax.__main__
from otter_jax.commands import configs, flags

REPO = pathlib.Path(__file__).parent.parent
DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
# What a command calls when it first needs data, weights or a file.
NEEDS = {
    "train": "otter_jax.training.contrastive.ensure",
    "doctor": "otter_jax.training.contrastive.ensure",
    "transfer": "otter_jax.transfer.task.open_splits",
    "convert": "otter_jax.run.convert.shapes",
}


class Reached(BaseException):
    """Ends a command where it first needs what is not here."""


def blocks_of(document):
    text = document.read_text("utf-8")
    return re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines_of(document):
    """The lines of a document's blocks of code, and what stands in its text as code."""
    text = document.read_text("utf-8")
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in blocks_of(document):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"^(\$|time) ", "", re.split(r" +#| [|] ", line)[0])
    for code in re.findall(r"`([^`]+)`", prose):
        yield " ".join(code.split())


def commands_of(document):
    """The commands in a document, as lists of words; what may be left out is there."""
    for line in lines_of(document):
        if line.startswith("otter-jax "):
            yield shlex.split(re.sub(r"\[|\]", "", line))[1:]


@EACH
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        there = document.parent / path if path else document
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}


@EACH
def test_files_that_documents_name_are_there(document):
    """Tests, benchmarks, configs and files of the package; NAME and the like stand for others."""
    text = document.read_text("utf-8")
    tested = set(re.findall(r"(?:\w+/)*test_\w+\.py", text))
    names = set(re.findall(r"\b(?:tests|benchmarks|configs|otter_jax|launch)/[\w./]+\.\w+", text))
    for name in sorted(tested | names):
        path = pathlib.Path(name)
        if not any(part.isupper() for part in (*path.parts[:-1], path.stem)):
            assert (REPO / path).exists() or any((REPO / "tests").rglob(path.name)), name


@EACH
def test_commands_in_documents_are_understood(document):
    for name, *words in commands_of(document):
        command = importlib.import_module(otter_jax.__main__.COMMANDS[name][0])
        if not words:  # the text speaks of the command
            continue
        rest, overrides = flags.split(words)
        options = command.parser().parse_all(rest)
        config = getattr(options, "config", None)
        if config and config.partition(":")[0] in configs.names():
            configs.load(config, overrides)


@EACH
def test_commands_that_train_are_right_until_they_need_data(document, tmp_path, monkeypatch):
    def reach(*_, **__):
        raise Reached

    for place in set(NEEDS.values()):
        monkeypatch.setattr(place, reach)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.pth.tar").touch()
    for name, *words in commands_of(document):
        _, _, config = " ".join(words).replace("=", " ").partition("--config ")
        if name in NEEDS and re.split("[ :]", config)[0] in configs.names():
            command = importlib.import_module(otter_jax.__main__.COMMANDS[name][0])
            with pytest.raises(Reached):
                command.main(words)


def test_the_readme_has_commands_to_understand():
    found = {name for name, *_ in commands_of(REPO / "README.md")}
    assert found == set(otter_jax.__main__.COMMANDS)


@EACH
def test_what_documents_install_is_what_the_project_says(document):
    """Extras that there are; single packages are those of an extra, or the quickstart's."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {re.match(r"[\w-]+", each)[0] for of_one in extras.values() for each in of_one}
    known |= set(re.findall(r"[\w-]+", (REPO / "launch" / "install.sh").read_text()))
    for line in lines_of(document):
        if line.startswith("pip install "):
            for word in shlex.split(line)[2:]:
                extra = re.fullmatch(r"\.\[(\w+)\]", word)
                assert extra[1] in extras if extra else word[0] in "-." or word in known, line


@EACH
def test_scripts_that_documents_start_are_there(document):
    for line in lines_of(document):
        words = shlex.split(line) if re.match(r"(bash|sbatch) \S+\.\w+", line) else []
        assert not words or (REPO / words[1]).is_file(), line
