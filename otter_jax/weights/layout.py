"""Describes a two-tower model of another project: its modules, and where its tensors are."""

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, NamedTuple

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.models.clip import ClipTextConfig
from otter_jax.models.fitting import Fitting
from otter_jax.models.towers import Towers
from otter_jax.weights import tensors
from otter_jax.weights.naming import Family, Rules

READ = 'docs/encoders.md, "CLIPs of other projects", says what is read'
# What CLIP's own pictures were, in 0..1; for files that do not say.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

TOKENIZER = "openai/clip-vit-base-patch32"  # has the tokenizer of all CLIPs with this many tokens:
TOKENS = 49408


class Layout(NamedTuple):
    """Holds what the configs of a folder say.

    Attributes:
      module: both towers, with mean and deviation of the pixels.
      families: the names of the tensors of "img" and of "txt", in families of files.
      rules: from the names in the file to those of the families behind "img." and "txt.", and to
        "img_head.weight" and "txt_head.weight".
      library: which wrote the folder.
      transposed: names in the file of matrices that lie there as they are used, (in, out).
      files: names that the file of weights may have.
      pictures: how pictures become pixels.
      max_tokens: of a text.
      tokenizer: a path or hub name for a folder that has no tokenizer; "" if there is none.
    """

    module: Towers
    families: Mapping[str, tuple[Family, ...]]
    rules: Rules
    files: tuple[str, ...]
    pictures: Fitting
    max_tokens: int
    tokenizer: str
    library: Literal["transformers", "open_clip"]
    transposed: Set[str] = frozenset()


def usual_tokenizer(config: ClipTextConfig) -> str:
    """Returns the hub name of OpenAI's tokenizer if a text encoder embeds as many tokens, or ""."""
    return TOKENIZER if config.vocab_size == TOKENS else ""


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing or holds anything else."""
    if not file.is_file():
        raise UserError(f"There is no {file}.")
    try:
        tensors.check_beginning(file)
        found = files.read_json(file)
    except UserError as error:
        raise UserError(f"{file} {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a JSON object.")
    return found


def section(file: Path, about: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an object within a config; {} if it is not there or null."""
    found = about.get(name)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{file}: {name}={found!r} is not an object.")
    return dict(found or {})


def check_fixed(file: Path, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises UserError if a config gives another value where one alone is read here."""
    for name, value in fixed.items():
        if name in given and given[name] != value:
            raise UserError(
                f"{file} says {name}={given[name]!r}, and what is read here has {value!r}: the "
                f"model would be another one. {READ}."
            )


def check_known(file: Path, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UserError if a config has entries whose meaning is not known here."""
    unknown = sorted(given.keys() - set(known))
    if unknown:
        some = ", ".join(f"{name}={given[name]!r}" for name in unknown[:6])
        raise UserError(
            f"{file} has {some}, whose meaning is not known here: the model might be another one. "
            f"{READ}."
        )


def chosen(file: Path, given: Mapping[str, Any], name: str, default: Any, among: Sequence) -> Any:
    """Returns an entry of a config. Raises UserError if it is not among the values."""
    value = given.get(name, default)
    if value not in among:
        known = ", ".join(map(repr, among))
        raise UserError(f"{file} says {name}={value!r}, which is not read here; {known} are.")
    return value


def count(file: Path, given: Mapping[str, Any], name: str, default: int) -> int:
    """Returns a positive whole number of a config. Raises UserError for anything else."""
    value = given.get(name, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{file}: {name}={value!r} is not a positive whole number.")
    return value


def side(file: Path, name: str, value: Any) -> int:
    """Returns the side of a square in pixels, given as one number or two. Raises UserError."""
    both = list(value.values()) if isinstance(value, dict) else value
    both = both if isinstance(both, list) else [both]
    one = both[0] if both else None
    if type(one) is not int or one < 1 or len(both) > 2 or both[-1] != one:
        raise UserError(f"{file}: {name}={value!r} is not the side of a square.")
    return one


def pixels(
    file: Path, mean: Any, std: Any
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns mean and deviation in 0..255, given in 0..1. Raises UserError for anything else."""
    found = []
    for name, values in (("mean", mean), ("std", std)):
        try:
            three = tuple(255 * float(x) for x in values)
        except (TypeError, ValueError):
            three = ()
        if len(three) != 3 or (name == "std" and min(three) <= 0):
            raise UserError(f"{file}: {name}={values!r} is not three numbers, one per channel.")
        found.append(three)
    return found[0], found[1]


def check_grid(file: Path, *, width: int, heads: int, size: int, patch: int) -> None:
    """Raises UserError for a vision transformer whose width or picture does not divide."""
    if heads < 1 or width % heads:
        raise UserError(f"{file}: a width of {width} does not divide into {heads} heads.")
    if size % patch:
        raise UserError(
            f"{file}: pictures of {size}x{size} pixels do not divide into patches of "
            f"{patch}x{patch}."
        )
