"""JSON, YAML and tables that people and other programs give, read as plain data: the only place that does.

*Plain data* is text, numbers, true, false, null, lists, and mappings whose keys are text. Whatever a file says
twice, or in a way that programs read differently, is refused by name instead of guessed: a key or column that is there
twice, a number like 010 or 1:30. So is what would only harm later: NUL characters, half characters, numbers beyond 64
bits, structures that are deep or grow without end by references to themselves.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from medcyclegan.errors import InputError

DEEPEST = 50  # levels of lists and mappings
MOST_VALUES = 10_000  # of a YAML text, each reference to a part counted in full
LARGEST_YAML = 200_000  # characters; a config has a few thousand, and the parser is slow
_AMBIGUOUS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        what: the file in the words of a message, such as "datalist /data/cohort.json".

    Raises:
        InputError: it cannot be read, is no JSON, or holds what is no plain data.
    """
    return parse_json(_text(path, what), what)


def parse_json(text: str, what: str) -> Any:
    """The content of a JSON text; as `read_json`."""

    def objects(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [key for key, _ in pairs]
            raise _Refused(f"the key {_shown(next(k for k in names if names.count(k) > 1))} is given twice")
        return content

    def constant(name: str) -> NoReturn:
        raise _Refused(f"{name} is no JSON")

    with _refusals(what, "JSON"):
        content = json.loads(
            text, object_pairs_hook=objects, parse_int=_whole, parse_float=_finite, parse_constant=constant
        )
        _require_plain(content)
    return content


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file with one document, None if it is empty.

    Numbers are read as YAML 1.2 has them (1e-4 is one); yes, no, on and off are true and false as in YAML 1.1; dates
    are text. Parts may be named (&x) and used again (*x), but not within themselves.

    Args:
        path: the file.
        what: the file in the words of a message, such as "config runs/brain.yaml".

    Raises:
        InputError: it cannot be read, is no YAML, or holds what is no plain data.
    """
    return parse_yaml(_text(path, what), what)


def parse_yaml(text: str, what: str) -> Any:
    """The content of a YAML text; as `read_yaml`."""
    with _refusals(what, "YAML"):
        if len(text) > LARGEST_YAML:
            raise _Refused(f"it has {len(text)} characters, at most {LARGEST_YAML} are read")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node)
        content = loader.construct_document(node)
        _require_plain(content)
    return content


def read_table(
    path: Path, what: str, delimiter: str = ",", problems: list[str] | None = None
) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a CSV; rows without any value are left out.

    Args:
        path: the file.
        what: the file in the words of a message, such as "pairs file pairs.csv".
        delimiter: between cells.
        problems: takes what is wrong with single lines, for a caller who has more to say; by default it is raised.

    Raises:
        InputError: it cannot be read or is no CSV, a column is there twice, or a row has more or fewer
            values than columns.
    """
    text = _text(path, what)
    if "\0" in text:
        raise InputError(f"the {what} cannot be read, it is no CSV: it holds NUL characters.")
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        reason = "a quotation mark is not closed" if "unexpected end" in str(error) else str(error)
        raise InputError(f"the {what} cannot be read, it is no CSV: line {reader.line_num}: {reason}.") from None
    if not rows:
        return [], []
    columns, found = rows[0][1], list[str]()
    named = [column for column in columns if column]
    if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise InputError(f"the {what} cannot be used: it has more than one column {', '.join(twice)}.")
    content = []
    for line, cells in rows[1:]:
        if len(cells) < len(columns):
            found.append(
                f"line {line}: fewer values than columns ({len(cells)}, and {len(columns)} columns); cut short?"
            )
        padded = cells + [""] * (len(columns) - len(cells))
        if any(padded[len(columns) :]):
            found.append(f"line {line}: more values than columns ({len(cells)}, and {len(columns)} columns)")
        if any(cell for column, cell in zip(columns, padded, strict=False) if not column):
            found.append(f"line {line}: a value in a column without a name")
        content.append({column: cell for column, cell in zip(columns, padded, strict=False) if column})
    if problems is not None:
        problems += found
    elif found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(f"the {what} cannot be used: {'; '.join(found[:5])}{more}.")
    return named, content


def require_plain(content: Any, what: str) -> None:
    """Refuse what is no plain data, or more than a config can hold, in what another reader gave, such as torch's.

    Raises:
        InputError: saying why.
    """
    with _refusals(what, "plain data"):
        _require_plain(content, MOST_VALUES)


class _Refused(ValueError):
    """What is no plain data; the message says why."""


@contextmanager
def _refusals(what: str, kind: str) -> Iterator[None]:
    """Name the file in what a parser raises."""
    try:
        yield
    except _Refused as error:
        raise InputError(f"the {what} cannot be used: {error}.") from None
    except RecursionError:
        raise InputError(f"the {what} cannot be used: {_TOO_DEEP}.") from None
    except (ValueError, KeyError, yaml.YAMLError) as error:  # the first two of an explicit YAML tag, such as !!int x
        raise InputError(f"the {what} cannot be read, it is not {kind}: {_one_line(error)}.") from None


_TOO_LARGE = "is a whole number beyond 64 bits"
_TOO_MANY = f"it holds more than {MOST_VALUES} values, counting those that references repeat"
_TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def _text(path: Path, what: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no {what}.", "Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"the {what} is a folder, and a file is needed.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"the {what} cannot be read: {error}.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"line {line} holds the byte 0x{content[error.start]:02x}"
        raise InputError(
            f"the {what} cannot be read, it is no text in UTF-8: {byte}.",
            "Save it with the encoding UTF-8.",
        ) from None


def _require_plain(content: Any, most: float = math.inf) -> None:
    """Refuse, in what a parser gave, text that no file name can hold, keys that are no text, depth and bombs."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise _Refused(_TOO_DEEP)
        if count > most:
            raise _Refused(_TOO_MANY)
        if isinstance(value, dict):
            if keys := [key for key in value if not isinstance(key, str)]:
                raise _Refused(f"the key {_shown(str(keys[0]))} is no text")
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str):
            _require_text(value)


def _require_text(value: str) -> None:
    if "\0" in value:
        raise _Refused(f"the text {_shown(value)} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Refused(f"the text {_shown(value)} holds half of a character (a lone surrogate)") from None


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) < 25 else None
    if number is None or not -(2**63) <= number < 2**63:
        raise _Refused(f"{_shown(digits)} {_TOO_LARGE}")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Refused(f"{_shown(digits)} is no finite number")
    return number


def _shown(value: str, most: int = 40) -> str:
    return repr(value if len(value) <= most else value[:most] + "...")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace(' in "<unicode string>", line', " in line").split())


def _require_bounded(root: yaml.Node) -> None:
    """Refuse references of a part to itself, and nested ones that multiply; before anything is made of them."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST:
            raise _Refused(_TOO_DEEP)
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in open_:
            raise _Refused(f"line {node.start_mark.line + 1}: a part refers to itself")
        if id(node) not in sizes:
            open_.add(id(node))
            parts: Iterable[yaml.Node] = (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            )
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
            open_.discard(id(node))
        if sizes[id(node)] > MOST_VALUES:
            raise _Refused(_TOO_MANY)
        return sizes[id(node)]

    size(root, 0)


class _Loader(yaml.SafeLoader):
    """Plain data; see `read_yaml`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            place = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"{place}: a key is a list or a mapping, and keys are text")
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _Refused(
                    f"{place}: the key {_shown(key.value)} is no text; if it is to be, put it in quotation marks"
                )
            if key.value in seen:
                raise _Refused(f"{place}: the key {_shown(key.value)} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _number(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if _AMBIGUOUS.fullmatch(text):
            raise _Refused(
                f"line {node.start_mark.line + 1}: {_shown(text)} is one number to some programs and another to "
                "others; write it without leading zeros and colons, or text in quotation marks"
            )
        return text

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self._number(node)
        number = int(text.replace("_", ""), 0) if len(text) < 100 else 2**64
        if not -(2**63) <= number < 2**63:
            raise _Refused(f"line {node.start_mark.line + 1}: {_shown(text)} {_TOO_LARGE}")
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = self._number(node)
        return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


def _set_up(loader: Any) -> None:
    """Only plain tags: no dates, sets, binaries, and nothing of Python's."""
    prefix = "tag:yaml.org,2002:"
    kept = {f"{prefix}{name}" for name in ("bool", "int", "null", "merge")}
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in kept]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    loader.add_implicit_resolver(f"{prefix}float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
    loader.yaml_constructors = {
        f"{prefix}{name}": yaml.SafeLoader.yaml_constructors[f"{prefix}{name}"]
        for name in ("null", "bool", "str", "seq", "map")
    }
    loader.yaml_constructors[None] = yaml.SafeLoader.yaml_constructors[None]
    loader.yaml_constructors[f"{prefix}int"] = _Loader.construct_yaml_int
    loader.yaml_constructors[f"{prefix}float"] = _Loader.construct_yaml_float


_set_up(_Loader)
