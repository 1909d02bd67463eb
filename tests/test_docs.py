"""The documentation: its reference holds everything there is, and its pages name only what exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from medcyclegan.cli import app
from medcyclegan.config import Experiment
from medcyclegan.registry import LISTED, listing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / ".github" / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
VERBS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("generated")


def keys_by_section(content: dict[str, Any], path: str = "") -> dict[str, list[str]]:
    """Dotted section -> its keys, of sections that have any."""
    found: dict[str, list[str]] = {}
    for key, value in content.items():
        if isinstance(value, dict) and "_target_" not in value:
            found |= keys_by_section(value, f"{path}.{key}" if path else key)
        else:
            found.setdefault(path or "Top level", []).append(key)
    return found


def test_every_key_of_a_configuration_is_told(generated: Any) -> None:
    text = generated.configuration()
    sections = dict(re.findall(r"^## (\S[^\n]*)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    for section, keys in keys_by_section(Experiment().to_dict()).items():
        rows = re.findall(r"^\| `(\w+)` \|", sections[section], flags=re.MULTILINE)
        assert sorted(rows) == sorted(keys), section
    # Default, range and meaning of three that are known.
    assert "| `steps` | `100000` | whole number, at least 1 | optimizer steps |" in sections["training"]
    assert "| `ct_window` | `[-1024.0, 3071.0]` | 2 times number |" in sections["preparation"]
    assert "| `modality` | `CT` | `MR`, `CT` |" in sections["domains.b"]


def test_every_verb_and_option_is_told(generated: Any) -> None:
    text = generated.commands()
    assert sorted(re.findall(r"^## (\S+)$", text, flags=re.MULTILINE)) == sorted(VERBS)
    for verb in VERBS.values():
        for parameter in verb.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}`" in text


def test_every_part_is_told(generated: Any) -> None:
    text = generated.parts()
    for kind in LISTED:
        for part in listing(kind):
            assert f"### {part['name']}\n" in text
            assert all(f"- `{argument['name']}`: " in text for argument in part["arguments"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:configs|examples)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    for block in re.findall(r"^ *```bash\n(.*?)```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "medcyclegan" not in words or words[:2] == ["pip", "install"]:
                continue
            verb, *rest = words[words.index("medcyclegan") + 1 :]
            options = {option for parameter in VERBS[verb].params for option in parameter.opts}
            used = {word.split("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
            assert used <= options, line


def test_what_the_reference_takes_from_docstrings_exists() -> None:
    found = re.findall(r"^\.\. auto(\w+):: (\S+)$", "\n".join(p.read_text() for p in PAGES), flags=re.MULTILINE)
    assert len(found) > 50
    for kind, path in found:
        module, _, name = path.rpartition(".")
        if kind == "module":
            assert importlib.import_module(path).__doc__, path
        else:
            assert getattr(importlib.import_module(module), name).__doc__, path


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("(B, *spatial) to |x|", r"(B, \*spatial) to \|x\|"),
        ("a *case* is `a * b`", "a *case* is `a * b`"),
        ("2**depth", r"2\*\*depth"),
        ("a name_ of gen_ab", r"a name\_ of gen_ab"),
    ],
)
def test_docstrings_become_markup(monkeypatch: pytest.MonkeyPatch, written: str, shown: str) -> None:
    monkeypatch.syspath_prepend(DOCS)
    assert importlib.import_module("docstrings").as_rst([written]) == [shown]


def test_indented_blocks_of_docstrings_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    lines = ["The loss:", "", "    |a * b|", "    c", "", "Args:", "    x: (B, *s)", "", "    y: 1"]
    assert importlib.import_module("docstrings").as_rst(lines) == [
        *["The loss:", "", "::", "", "    |a * b|", "    c", ""],
        *["Args:", r"    x: (B, \*s)", "", "    y: 1"],
    ]


def test_the_citation_names_this_version() -> None:
    from medcyclegan import __version__

    citation = (ROOT / ".github" / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, flags=re.MULTILINE) == [__version__]
