"""Damage: what disks, networks, editors, scripts and attackers do to files. Everything follows from the given `rng`."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from random import Random

Change = tuple[str, bytes]

WORDS = (
    *("0", "-1", "1e308", "1e-30", "nan", "inf", "1,5", "", "x", "1 2", "1_000", "0x10", "True", "-0.0", "\uff13"),
    *("2147483648", "9" * 25, "9" * 5000, "1.5.2", "null", "../x", "/etc/passwd", "\0", "\ud800", "~", "LIST", "1e400"),
)


def damage(rng: Random, data: bytes, focus: int | None = None) -> Change:
    """Change bytes; four of five times within the first `focus` ones."""
    end = min(focus, len(data)) if focus and rng.random() < 0.8 else len(data)
    at = rng.randrange(max(1, end))
    size = rng.choice((1, 2, 4, 8, 16, 64))
    kind = rng.choice(("flip", "flip", "set", "set", "cut", "extend", "repeat", "zero", "remove", "swap"))
    changed = bytearray(data)
    if not data:
        return "extend", b"\0" * size
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "set":
        changed[at] = rng.choice((0, 1, 255, rng.randrange(256)))
    elif kind == "cut":
        del changed[at:]
    elif kind == "extend":
        changed += rng.choice((b"\0", rng.randbytes(1), b"\n")) * size
    elif kind == "repeat":
        changed[at:at] = changed[at : at + size]
    elif kind == "zero":
        changed[at : at + size] = bytes(len(changed[at : at + size]))
    elif kind == "remove":
        del changed[at : at + size]
    else:
        changed[at : at + size] = changed[at : at + size][::-1]
    return f"{kind} {size} at {at}", bytes(changed)


def binary_field(rng: Random, code: str, old: bytes, order: str) -> bytes:
    """Another value for one number of a header, packed as `struct` format `code`."""
    if code == "s":
        return rng.choice((b"\0", b"\xff", b"n", rng.randbytes(1)))
    size = struct.calcsize(code)
    (value,) = struct.unpack(order + code, old)
    if rng.random() < 0.15:
        return old[::-1]
    if code in "fd":
        value = value if value == value else 0.0
        choices = [0.0, -0.0, -1.0, 1.0, 2.0, 1e-30, 1e30, -1e30, 3.5, float("nan"), float("inf"), -float("inf")]
        new = rng.choice([*choices, -value, value * 10, value / 3, value * (1 + 1e-6), value + 0.01])
        return struct.pack(order + code, max(-3e38, min(3e38, new)) if code == "f" and abs(new) < 1e300 else new)
    low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if code.islower() else (0, (1 << 8 * size) - 1)
    new = rng.choice(
        (0, -1, 1, 2, 3, 4, 5, 8, 16, 64, 512, low, high, high - 1, value + 1, value - 1, 2 * value, -value)
    )
    return struct.pack(order + code, max(low, min(high, new)))


def line_change(rng: Random, lines: list[str], extra: Sequence[str] = ()) -> str:
    """Change a text of lines `key SEPARATOR value` in place."""
    at = rng.randrange(len(lines))
    found = re.match(r"(\s*[\w \"-]+?\"?\s*[:=,]=?\s*)(.*)", lines[at])
    key, value = found.groups() if found else ("", lines[at])
    kind = rng.choice(
        ("word", "word", "word", "token", "token", "drop", "twice", "again", "move", "comma", "case", "extra")
    )
    said = f"{kind} {lines[at][:40]!r}"
    if kind == "word":
        lines[at] = key + rng.choice(WORDS)
    elif kind in ("token", "again"):
        tokens = value.split(" ")
        tokens[rng.randrange(len(tokens))] = rng.choice(WORDS)
        lines[at : at + (kind == "token")] = [key + " ".join(tokens)]
    elif kind == "drop":
        del lines[at]
    elif kind == "twice":
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == "move":
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    elif kind == "comma":
        lines[at] = key + value.replace(".", ",")
    elif kind == "case":
        lines[at] = rng.choice((lines[at].upper(), lines[at].lower(), " " + lines[at], lines[at] + "\r"))
    elif extra:
        lines.insert(rng.randrange(len(lines)), rng.choice(extra))
    return f"{said} -> {lines[min(at, len(lines) - 1)][:40] if lines else ''!r}"


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
