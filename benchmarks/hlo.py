"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple


class Collective(NamedTuple):
    """Something that the devices do together: what each gets of it, and how often in a program."""

    kind: str
    shapes: list[tuple[int, ...]]
    bytes: int
    times: int

    def sent(self, P: int) -> float:
        """Bytes that one of P devices sends."""
        share = {"all-gather": (P - 1) / P, "reduce-scatter": P - 1, "all-reduce": 2 * (P - 1) / P}
        return share[self.kind] * self.bytes * self.times


COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) [^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
COLLECTIVE = re.compile(
    r"= (.*?) ((?:ragged-)?all-to-all|all-gather|all-reduce|reduce-scatter"
    r"|collective-permute|collective-broadcast)(-start)?\("
)
LOOP = re.compile(r"body=%([\w.-]+).*?known_trip_count\D+(\d+)")


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program; one in a loop counts once a turn of that loop."""
    trips = dict(LOOP.findall(text))
    found = []
    for name, computation in COMPUTATION.findall(text):
        for result, kind, start in COLLECTIVE.findall(computation):
            arrays = re.findall(r"(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", result)
            if start and kind != "all-reduce":  # (what goes in, what comes out)
                arrays = arrays[len(arrays) // 2 :]
            shapes = [tuple(int(n) for n in axes.split(",") if n) for _, axes in arrays]
            size = sum(
                int(bits or 8) // 8 * math.prod(shape)
                for (bits, _), shape in zip(arrays, shapes, strict=True)
            )
            found.append(Collective(kind, shapes, size, int(trips.get(name, 1))))
    return found


ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z-]*)\((.*?)\)(?:,|$)")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def bytes_moved(text: str) -> int:
    """Bytes that a program's kernels read and write, if each does so once with all it is given.

    Counted are those of the entry; what loops and branches do inside is not.
    """
    entry = text[text.index("\nENTRY") :].partition("\n}")[0]
    sizes: dict[str, int] = {}
    moved = 0
    for line in entry.splitlines():
        if found := INSTRUCTION.match(line):
            name, result, kind, arguments = found.groups()
            sizes[name] = _size(result)
            if kind not in FREE and not kind.endswith("-done"):
                read = re.findall(r"%([\w.-]+)", arguments)
                moved += sizes[name] + sum(sizes.get(argument, 0) for argument in read)
    return moved


def _size(shapes: str) -> int:
    """Bytes of all arrays in the text of a type."""
    return sum(
        (1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8 or 1)
        * math.prod(int(n) for n in axes.split(",") if n)
        for kind, axes in ARRAY.findall(shapes)
    )
