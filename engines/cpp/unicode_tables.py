"""Write the Unicode tables of the C++ tokenizer, from the `tokenizers` library itself.

Python and ICU use other Unicode versions, and a code point that only one of them counts as a letter
would split a word differently. So `tokenizers` is queried for every code point: letter, number or
space, lower case, and decomposition. Usage: unicode_tables.py FILE
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, __version__, normalizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # decomposed by arithmetic, not by a table

_nfc, _nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str


def members(pattern: str) -> list[int]:
    """Code points that a one-character regular expression matches."""
    without = normalizers.Replace(Regex(pattern), "").normalize_str
    return [c for c in CODE_POINTS if not without(chr(c))]


def ranges(points: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted code points as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for c in points:
        if found and found[-1][1] == c - 1:
            found[-1] = (found[-1][0], c)
        else:
            found.append((c, c))
    return found


def combining_order() -> dict[int, int]:
    """Ranks of the code points that canonical ordering moves, in the order of their classes.

    Two neighbours are swapped if the first one's combining class is greater than the second one's
    and neither is 0. `tokenizers` does not reveal the classes, but swaps reveal their order, which
    is all that normalisation needs.
    """
    low, high = chr(0x334), chr(0x345)  # members of the lowest and the highest class

    def above(first: str, second: str) -> bool:
        return first != second and _nfd(first + second) == second + first

    alone = [c for c in CODE_POINTS if _nfd(chr(c)) == chr(c)]
    moved = [c for c in alone if above(high, chr(c)) or above(chr(c), low)]
    classes: list[str] = []  # one member per class, in ascending order
    order: dict[int, int] = {}
    for c in moved:
        place = sum(above(chr(c), member) for member in classes)
        if place == len(classes) or above(classes[place], chr(c)):
            classes.insert(place, chr(c))
    for c in moved:
        order[c] = 1 + sum(above(chr(c), member) for member in classes)
    return order


def compositions(decomposed: dict[int, str]) -> list[tuple[int, int, int]]:
    """Pairs that NFC composes, as (first, second, composed)."""
    found = []
    for c, parts in decomposed.items():
        if len(parts) > 1 and _nfc(chr(c)) == chr(c):
            first = _nfc(parts[:-1])
            assert len(first) == 1, hex(c)
            found.append((ord(first), ord(parts[-1]), c))
    return sorted(found)


def main(target: Path) -> None:
    """Write all tables as C++ arrays to `target`."""
    lower = {c: normalizers.Lowercase().normalize_str(chr(c)) for c in CODE_POINTS}
    lower = {c: text for c, text in lower.items() if text != chr(c)}
    decomposed = {c: _nfd(chr(c)) for c in CODE_POINTS if c not in HANGUL}
    decomposed = {c: text for c, text in decomposed.items() if text != chr(c)}
    order = combining_order()

    def mapping(table: dict[int, str]) -> list[tuple[int, ...]]:
        width = 4  # longest lower case or decomposition of a code point
        assert all(len(text) <= width for text in table.values())
        return [
            (c, *(ord(part) for part in text), *[0] * (width - len(text)))
            for c, text in table.items()
        ]

    tables: list[tuple[str, str, list[tuple[int, ...]]]] = [
        ("Range", "letters", [*ranges(members(r"\p{L}"))]),
        ("Range", "numbers", [*ranges(members(r"\p{N}"))]),
        ("Range", "spaces", [*ranges(members(r"\s"))]),
        ("Mapping", "lower_case_of", mapping(lower)),
        ("Mapping", "decompositions", mapping(decomposed)),
        ("Composition", "compositions", [*compositions(decomposed)]),
        ("Order", "combining_order", sorted(order.items())),
    ]
    lines = [
        f"// Written by unicode_tables.py, from tokenizers {__version__}; see licenses/unicode.txt."
    ]
    for kind, name, rows in tables:
        lines.append(f"constexpr {kind} {name}[] = {{")
        cells = " ".join("{" + ",".join(map(str, row)) + "}," for row in rows)
        lines += textwrap.wrap(cells, 98, break_long_words=False, break_on_hyphens=False)
        lines.append("};")
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
