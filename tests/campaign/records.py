"""What the program itself writes or is told: datalists, configs, tables, prepared folders, checkpoints, results.

Each is compared as plain data: what the program took from the changed files against what a strict reading of them says.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml

from campaign.meaning import need
from campaign.mutators import Change, damage
from campaign.outcomes import attempt
from campaign.trees import VALUES, mutate_csv, mutate_json, mutate_yaml
from campaign.workplace import TINY, workplace
from medcyclegan import config
from medcyclegan.cohort import cases, datalist
from medcyclegan.cohort.layouts import table
from medcyclegan.data.prepared_folder import open_prepared
from medcyclegan.evaluation.pairing import cases_from_csv
from medcyclegan.evaluation.results import read_results
from medcyclegan.factory import load_translator
from medcyclegan.io.tree import Tree
from medcyclegan.progress import Silent
from medcyclegan.training.checkpoint import load_checkpoint


@dataclass(frozen=True)
class Record:
    """`fill` makes sound files in a folder, `files` of which may be changed; the first one is what is opened.

    `read` gives what the program took from the folder, `meaning` what a strict reading of it gives, as plain data.
    """

    fill: Callable[[Path], None]
    files: tuple[str, ...]
    mutate: Callable[[Random, bytes], Change]
    read: Callable[[Path], Any]
    meaning: Callable[[Path], Any]

    def change(self, rng: Random, folder: Path) -> str:
        self.fill(folder)
        file = folder / rng.choice(self.files)
        said, content = self.mutate(rng, file.read_bytes())
        file.write_bytes(content)
        return f"{file.name}: {said}"

    def judge(self, folder: Path) -> tuple[str, str]:
        word, detail, found = attempt(lambda: self.read(folder), str(folder))
        if word not in ("accepted", "warned"):
            return word, detail
        try:
            meant = self.meaning(folder)
        except Exception as reason:
            wrong = f"accepted what has no meaning: {type(reason).__name__}: {reason}"
        else:
            wrong = difference(found, meant)
        if wrong:
            return ("silent" if word == "accepted" else "differs, warned"), f"{wrong} {detail}"
        return ("right" if word == "accepted" else "warned"), detail


def difference(found: Any, meant: Any, name: str = "$") -> str:
    """The first value of `meant` that is not in `found`; 1 is 1.0 and a tuple a list, nothing else is alike."""
    if isinstance(meant, dict) and isinstance(found, dict):
        parts = [(found.get(key, "nothing"), value, f"{name}.{key}") for key, value in meant.items()]
        return next((first for part in parts if (first := difference(*part))), "")
    if isinstance(meant, list | tuple) and isinstance(found, list | tuple) and len(found) == len(meant):
        parts = [(f, m, f"{name}[{k}]") for k, (f, m) in enumerate(zip(found, meant, strict=True))]
        return next((first for part in parts if (first := difference(*part))), "")
    number = {type(found), type(meant)} <= {int, float}
    if isinstance(meant, str) and isinstance(found, int | float) and not isinstance(found, bool):
        return "" if str(found) == str(float(meant)) or str(found) == meant else f"{name}: took {found} for {meant!r}"
    same = (found == meant or (found != found and meant != meant)) and (number or type(found) is type(meant))
    return "" if same else f"{name}: took {str(found)[:100]!r} for {str(meant)[:100]!r}"


def strict_json(path: Path) -> Any:
    """RFC 8259, and no key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key stands twice")
        return dict(pairs)

    return json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=once)


def strict_rows(path: Path) -> list[dict[str, str]]:
    """RFC 4180: as many cells as columns, no column twice, text in UTF-8."""
    text = path.read_bytes().decode("utf-8-sig")
    need("\0" not in text, "NUL")
    head, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    need(len(set(head)) == len(head), "a column stands twice")
    need(all(len(row) == len(head) for row in rows), "cells and columns differ in number")
    return [dict(zip(head, row, strict=True)) for row in rows]


# Datalists.


def _volumes(folder: Path) -> None:
    for name in ("a1", "a2", "b1", "b2", "pa", "pb", "pc", "pd", "m", "a/1", "b/1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.nii").write_bytes(b"x")


def _fill_datalist(folder: Path) -> None:
    _volumes(folder)
    content = {
        "a": [{"image": "a1.nii", "body": "m.nii", "patient": "p1"}, {"image": "a2.nii"}],
        "b": [{"image": "b1.nii", "case": "b-one"}, {"image": "b2.nii", "site": "s"}],
        "pairs": [{"case": "p", "a": "pa.nii", "b": "pb.nii", "body": "m.nii", "patient": "p2"}],
        "about": {"seed": 1},
    }
    (folder / "x.json").write_text(json.dumps(content))


def _cohort(found: cases.Cohort) -> dict[str, Any]:
    return {
        **{
            d: [[c.id, ", ".join(map(str, c.images)), c.body and str(c.body)] for c in found.groups[d]]
            for d in ("a", "b")
        },
        "pairs": [
            [a.id, ", ".join(map(str, a.images)), ", ".join(map(str, b.images)), a.body and str(a.body)]
            for a, b in found.pairs
        ],
    }


def _datalist_meaning(folder: Path) -> dict[str, Any]:
    content = strict_json(folder / "x.json")
    need(
        set(content) <= {"a", "b", "pairs", "about", "val_a", "val_b", "test_a", "test_b", "test_pairs"}, "unknown list"
    )

    def path(name: str) -> str:
        need(isinstance(name, str) and name, "no path")
        return str(folder / name)

    def entry(e: dict[str, Any], *keys: str) -> list[Any]:
        need(set(e) <= {"image", "body", "case", "patient", "site", "contrast", "fold", "a", "b"}, "unknown key")
        need(all(isinstance(v, str) for v in e.values()), "no text")
        name = e["case"] if "case" in e else Path(e["image"]).name.removesuffix(".nii")
        return [name, *(path(e[key]) for key in keys), path(e["body"]) if e.get("body") else None]

    return {
        **{domain: [entry(e, "image") for e in content[domain]] for domain in ("a", "b")},
        "pairs": [entry(e, "a", "b") for e in content.get("pairs", [])],
    }


# Configs.


def _fill_config(folder: Path) -> None:
    content: dict[str, Any] = {
        "seed": 3,
        "data": {"a": "mr", "b": "ct"},
        "domains": {"a": {"name": "T1", "modality": "MR"}},
    }
    for setting in (*TINY, "preparation.spacing=[1.5,1.5,3]", "training.betas=[0.5,0.9]", "patches.matching=profile"):
        key, _, value = setting.partition("=")
        *parents, last = key.split(".")
        here = content
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = yaml.safe_load(value)
    (folder / "x.yaml").write_text(yaml.safe_dump(content))


class _Strict(yaml.SafeLoader):
    """YAML in which no key stands twice."""


def _once(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    merged = [v for k, v in node.value if k.tag == "tag:yaml.org,2002:merge"]
    own = [(loader.construct_object(k, deep=True), v) for k, v in node.value if v not in merged]
    need(all(isinstance(key, str) for key, _ in own) and len(dict(own)) == len(own), "a key twice, or no text")
    found: dict[Hashable, Any] = {}
    for value in merged:
        found |= loader.construct_object(value, deep=True)
    return found | {key: loader.construct_object(value, deep=True) for key, value in own}


_Strict.add_constructor("tag:yaml.org,2002:map", _once)


def _config_meaning(folder: Path) -> dict[str, Any]:
    content = yaml.load((folder / "x.yaml").read_bytes().decode("utf-8"), _Strict) or {}
    for key in ("a", "b"):
        if isinstance(content.get("data", {}).get(key), str):
            content["data"][key] = str(folder / content["data"][key])
    if content.get("patches", {}).get("matching") in (False, "off"):
        content["patches"]["matching"] = "any"
    return dict(content)


# Tables.


def _fill_table(folder: Path) -> None:
    _volumes(folder)
    rows = ["image,domain,modality,patient,split,body", "a1.nii,a,MR,p1,train,m.nii", "a2.nii,a,MR,p2,,"]
    (folder / "x.csv").write_text("\n".join([*rows, "b1.nii,b,CT,p3,,", "b2.nii,b,CT,p4,val,"]) + "\n")


def _fill_pairs(folder: Path) -> None:
    _volumes(folder)
    (folder / "x.csv").write_text("case,a,b,mask\none,pa.nii,pb.nii,m.nii\ntwo,pc.nii,pd.nii,\n")


def _fill_gradings(folder: Path) -> None:
    _volumes(folder)
    (folder / "x.csv").write_text("case,pred,ref,mask\none,pa.nii,pb.nii,m.nii\ntwo,a1.nii,b1.nii,m.nii\n")


def _rows(folder: Path, *columns: str, allowed: str = "") -> list[list[str]]:
    found = strict_rows(folder / "x.csv")
    need(found and set(found[0]) <= {*columns, *allowed.split()}, "unknown columns")
    need(all(row[columns[0]] for row in found), "an empty name")
    need("image" in columns or len({row[columns[0]] for row in found}) == len(found), "a name twice")
    return [[row.get(column, "").strip() for column in columns] for row in found]


def _at(folder: Path, path: Path | None) -> str:
    return "" if path is None else str(path).removeprefix(f"{folder}/")


# Prepared folders, checkpoints, results.


def _copied(*names: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in names:
            source = workplace() / name
            if source.is_dir():
                shutil.copytree(source, folder / source.name)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name)

    return fill


_CASE = "prepared/a/mr_001"


def _read_prepared(folder: Path) -> dict[str, Any]:
    found = open_prepared(folder / "prepared")
    found.verify(Silent())
    cases = {f"{group}/{case.id}": case for group, every in found.cases.items() for case in every}
    return {
        "preparations": {domain: [asdict(p) for p in channels] for domain, channels in found.preparations.items()},
        "grids": {name: [case.grid.to_dict(), case.source_grid.to_dict()] for name, case in cases.items()},
        "scalers": {name: [channel.scaler.to_dict() for channel in case.channels] for name, case in cases.items()},
        "arrays": {name: _digest(case.image[...], case.body[...]) for name, case in cases.items()},
    }


def _prepared_meaning(folder: Path) -> dict[str, Any]:
    """A prepared folder is of one piece: whatever is another than when it was written is damage."""
    return _read_prepared(workplace())


def _digest(*arrays: np.ndarray) -> list[str]:
    return [f"{a.shape} {a.dtype} {hash(np.ascontiguousarray(a).tobytes())}" for a in arrays]


def _mutate_checkpoint(rng: Random, content: bytes) -> Change:
    if rng.random() < 0.4:
        return damage(rng, content, rng.choice((200, None)))
    tree = torch.load(io.BytesIO(content), weights_only=True)
    here, name = tree, "$"
    while True:
        inner = [k for k, v in here.items() if isinstance(v, dict) and v]
        if not inner or (here is not tree and rng.random() < 0.4) or rng.random() < 0.2:
            break
        key = rng.choice(inner)
        here, name = here[key], f"{name}.{key}"
    key = rng.choice(list(here))
    new = rng.choice((*VALUES[:22], torch.zeros(3), "drop"))
    said = f"{name}.{key}: {str(new)[:30]}"
    if isinstance(new, str) and new == "drop":
        del here[key]
    elif isinstance(here[key], torch.Tensor) and rng.random() < 0.5:
        here[key] = rng.choice((here[key][:1], here[key] * float("nan"), here[key].double(), here[key].int()))
        said = f"{name}.{key}: another tensor"
    else:
        here[key] = new
    stream = io.BytesIO()
    torch.save(tree, stream)
    return said, stream.getvalue()


def flat(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): flat(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype} {hash(value.contiguous().numpy().tobytes())}"
    return [flat(v) for v in value] if isinstance(value, list | tuple) else value


def _read_checkpoint(folder: Path) -> dict[str, Any]:
    content = load_checkpoint(folder / "run" / "checkpoint.pt")
    for direction in ("ab", "ba"):
        load_translator(folder / "run" / "checkpoint.pt", direction=direction, device="cpu")
    return dict(flat(content))


def _checkpoint_meaning(folder: Path) -> dict[str, Any]:
    file = folder / "run" / "checkpoint.pt"
    with zipfile.ZipFile(file) as archive:
        need(archive.testzip() is None, "a checksum")
    content = torch.load(file, weights_only=True)
    numbers = [v for net in content["ema"].values() for v in net.values()]
    need(all(bool(torch.isfinite(v).all()) for v in numbers), "weights that are not finite")
    for domain in content["domains"].values():
        for channel in domain["channels"]:
            spacing = channel["preparation"]["spacing"]
            need(all(0 < s < 1000 for s in spacing) and len(spacing) == 3, "an impossible spacing")
            need(channel["scaler"]["low"] < channel["scaler"]["high"], "an impossible scale")
    return dict(flat(content))


def _read_scores(folder: Path) -> dict[str, Any]:
    found = read_results(folder / "scores")
    return {"cases": {case.name: dict(case.scores) for case in found.cases if not case.failed}}


def _scores_meaning(folder: Path) -> dict[str, Any]:
    strict_json(folder / "scores" / "summary.json")
    rows = strict_rows(folder / "scores" / "cases.csv")
    known = [key for key in rows[0] if key not in ("case", "notes") and all(_is_number(row[key]) for row in rows)]
    sound = {case: set(scores) for case, scores in _read_scores(workplace())["cases"].items()}
    shown = set.union(*sound.values()) & set(known)
    return {"cases": {row["case"]: {key: float(row[key]) for key in shown} for row in rows}}


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


RECORDS: dict[str, Record] = {
    "datalist": Record(
        _fill_datalist, ("x.json",), mutate_json, lambda f: _cohort(datalist.from_json(f / "x.json")), _datalist_meaning
    ),
    "config": Record(
        _fill_config, ("x.yaml",), mutate_yaml, lambda f: config.load(f / "x.yaml").to_dict(), _config_meaning
    ),
    "table": Record(
        _fill_table,
        ("x.csv",),
        mutate_csv,
        lambda f: [
            [_at(f, s.image), s.domain, s.modality, s.split, _at(f, s.body)] for s in table.read(Tree(f / "x.csv"))
        ],
        lambda f: _rows(f, "image", "domain", "modality", "split", "body", allowed="patient case kind site"),
    ),
    "pairs-table": Record(
        _fill_pairs,
        ("x.csv",),
        mutate_csv,
        lambda f: [
            [a.id, _at(f, *a.images), _at(f, *b.images), _at(f, a.body)]
            for a, b in cases.from_folders(f / "a", f / "b", pairs=f / "x.csv").pairs
        ],
        lambda f: _rows(f, "case", "a", "b", "mask"),
    ),
    "gradings-table": Record(
        _fill_gradings,
        ("x.csv",),
        mutate_csv,
        lambda f: [
            [name, _at(f, c.pred), _at(f, c.ref), _at(f, c.mask)]
            for name, c in cases_from_csv(f / "x.csv").cases.items()
        ],
        lambda f: _rows(f, "case", "pred", "ref", "mask", allowed="source pred_labels ref_labels target"),
    ),
    "prepared-json": Record(
        _copied("prepared"),
        ("prepared/prepared.json", f"{_CASE}/case.json"),
        mutate_json,
        _read_prepared,
        _prepared_meaning,
    ),
    "prepared-arrays": Record(
        _copied("prepared"),
        (f"{_CASE}/image.npy", f"{_CASE}/body.npy"),
        lambda rng, content: damage(rng, content, 128),
        _read_prepared,
        _prepared_meaning,
    ),
    "checkpoint": Record(
        _copied("run/checkpoint.pt"), ("run/checkpoint.pt",), _mutate_checkpoint, _read_checkpoint, _checkpoint_meaning
    ),
    "scores-json": Record(_copied("scores"), ("scores/summary.json",), mutate_json, _read_scores, _scores_meaning),
    "scores-csv": Record(_copied("scores"), ("scores/cases.csv",), mutate_csv, _read_scores, _scores_meaning),
}
