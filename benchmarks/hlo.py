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
