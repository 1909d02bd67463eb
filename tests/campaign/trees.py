"""Damage to JSON and YAML: keys and values of the tree that the text stands for."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from campaign.mutators import WORDS, Change, damage, encoded, line_change

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**30, "", "x", "0", "../x", "a\0b", "\ud800"),
    *([], {}, [[]], {"x": 1}, [None], "off", "1e3", "y" * 300, "nan"),
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(9 * ['*' + p])}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


class Pairs(list):
    """An object whose keys may stand twice."""


def parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def as_pairs(tree: Any) -> Any:
    if isinstance(tree, dict):
        return Pairs([key, as_pairs(value)] for key, value in tree.items())
    return [as_pairs(value) for value in tree] if isinstance(tree, list) else tree


def dumped(tree: Any) -> str:
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dumped(value)}" for key, value in tree) + "}"
    return "[" + ", ".join(map(dumped, tree)) + "]" if isinstance(tree, list) else json.dumps(tree)


def change_tree(rng: Random, tree: Any) -> str:
    """Change one node in place; what was done."""
    here, name = tree, "$"
    while True:
        inner = [k for k, v in enumerate(here) if isinstance(v[1] if isinstance(here, Pairs) else v, list)]
        if not here or not inner or rng.random() < 0.25:
            break
        k = rng.choice(inner)
        name += f".{here[k][0]}" if isinstance(here, Pairs) else f"[{k}]"
        here = here[k][1] if isinstance(here, Pairs) else here[k]
    if not here:
        here.append(["x", 1] if isinstance(here, Pairs) else rng.choice(VALUES))
        return f"{name}: something in it"
    k = rng.randrange(len(here))
    kind = rng.choice(("value", "value", "value", "number", "drop", "twice", "again", "name", "deep"))
    pair = isinstance(here, Pairs)
    said = f"{name}.{here[k][0] if pair else k} {kind}"
    old = here[k][1] if pair else here[k]
    if kind == "drop":
        del here[k]
        return said
    if kind == "twice":
        here.append(list(here[k]) if pair else old)
        return said
    new = rng.choice(VALUES)
    if kind == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        new = rng.choice((-old, old * 10, old + 1, old / 2, str(old), 0))
    if kind == "deep":
        new = "@deep"
    if kind == "name" and pair:
        here[k][0] = rng.choice((*[str(word) for word in WORDS[:20]], here[k][0] + " ", here[k][0].upper()))
    elif kind == "again" and pair:
        here.append([here[k][0], new])
    elif pair:
        here[k][1] = new
    else:
        here[k] = new
    return f"{said} = {str(new)[:40]!r}"


def text_of(tree: Any) -> bytes:
    """JSON, with what Python's writer cannot do: nesting a hundred thousand deep, numbers of five thousand digits."""
    text = dumped(tree).replace('"@deep"', "[" * 100_000 + "]" * 100_000)
    return encoded(text.replace("1" + "0" * 30, "1" + "0" * 5000))


def mutate_json(rng: Random, content: bytes) -> Change:
    if rng.random() < 0.25:
        return damage(rng, content)
    tree = parsed(content.decode())
    said = change_tree(rng, tree)
    return said, text_of(tree)


def mutate_yaml(rng: Random, content: bytes) -> Change:
    import yaml

    draw = rng.random()
    if draw < 0.2:
        return damage(rng, content)
    if draw < 0.24:
        return "bomb", rng.choice(
            (content + BOMB.encode(), BOMB.encode(), content + b"x: &x [*x]\n", b"a: " + b"[" * 99999)
        )
    if draw < 0.5:
        lines = content.decode().splitlines()
        said = line_change(rng, lines, ("<<: {seed: 1}", "---", "!!python/object/apply:os.system [true]", "seed: 3"))
        return said, encoded("\n".join(lines) + "\n")
    tree = as_pairs(yaml.safe_load(content))
    said = change_tree(rng, tree)
    return said, text_of(tree)


def mutate_csv(rng: Random, content: bytes) -> Change:
    draw = rng.random()
    if draw < 0.3:
        return damage(rng, content)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = rng.choice(rows)
    kind = rng.choice(
        ("cell", "cell", "cell", "drop", "twice", "more", "column", "quote", "semicolon", "bom", "utf-16")
    )
    if kind == "cell":
        row[rng.randrange(len(row))] = rng.choice((*WORDS, *rows[0], *rows[-1]))
    elif kind == "drop":
        rows.remove(row)
    elif kind == "twice":
        rows.insert(rng.randrange(len(rows) + 1), list(row))
    elif kind == "more":
        row.append("x")
    elif kind == "column":
        rows[0][rng.randrange(len(rows[0]))] = rng.choice((*rows[0], "x", rows[0][0] + " "))
    elif kind == "quote":
        row[rng.randrange(len(row))] = '"' + row[0]
    text = "\n".join((";" if kind == "semicolon" else ",").join(r) for r in rows) + "\n"
    return f"{kind} in {row!r}"[:150], text.encode("utf-16") if kind == "utf-16" else encoded(
        "\ufeff" * (kind == "bom") + text
    )
