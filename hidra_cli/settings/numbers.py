"""Lists and ranges of numbers: `5`, `2-20`, `2,5,10`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

MOST_WAYS_OR_SHOTS = 100_000


def parse_numbers(value: Any) -> tuple[int, ...]:
    """`5`, `2-20`, `2,5,10-12` → sorted distinct positive integers.

    Raises:
        ValueError: not of that form, not positive, or an empty range.
    """
    if isinstance(value, bool):
        raise ValueError("write a number, a list or a range: 5 or 2,5,10 or 2-20")
    if isinstance(value, int):
        value = str(value)
    if isinstance(value, list | tuple):
        value = ",".join(str(part) for part in value)
    ranges: list[tuple[int, int]] = []
    for part in map(str.strip, str(value).split(",")):
        match = re.fullmatch(r"([+-]?\d{1,99})(?:\s*(?:-|\.\.)\s*(\d{1,99}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"'{part}' is not a number or a range: write 5 or 2,5,10 or 2-20")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if first < 1:
            raise ValueError(f"{first} is not positive")
        if last < first:
            raise ValueError(f"the range {part} is empty: its end is below its start")
        if last > MOST_WAYS_OR_SHOTS:
            raise ValueError(f"{last} is more than {MOST_WAYS_OR_SHOTS}")
        ranges.append((first, last))
    numbers: list[int] = []
    for first, last in sorted(ranges):
        # Ranges may overlap; each number is made once.
        numbers += range(max(first, numbers[-1] + 1 if numbers else first), last + 1)
    return tuple(numbers)


def format_numbers(numbers: Iterable[int]) -> str:
    """The shortest form that `parse_numbers` reads: (2, 3, 4, 7) → `2-4,7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class _Numbers:
    """How pydantic reads and writes such a list. Pydantic is imported only when it is used."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic import BeforeValidator, PlainSerializer

        write = PlainSerializer(format_numbers, return_type=str)
        return handler(Annotated[source, BeforeValidator(parse_numbers), write])


Numbers = Annotated[tuple[int, ...], _Numbers()]
