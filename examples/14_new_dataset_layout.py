"""A folder convention of your own: a short script that writes a datalist, which `prepare` and `train` take.

python examples/14_new_dataset_layout.py OUTPUT_FOLDER

Here: PATIENT/VISIT/{t1,ct,mask}.nii.gz, where a visit has an MR, a CT or both. Visits with both and a mask are kept for
validation, and their patients are trained on in no visit.
"""

import json
import shutil
import sys
from pathlib import Path

from medcyclegan import config, factory, phantom


def datalist(root: Path) -> dict[str, list[dict[str, str]]]:
    """The lists a (MR), b (CT) and pairs; paths relative to `root`."""
    visits = sorted(path for path in root.glob("*/*") if path.is_dir())
    both = [v for v in visits if all((v / f"{name}.nii.gz").exists() for name in ("t1", "ct", "mask"))]
    paired = {visit.parent.name for visit in both}
    found: dict[str, list[dict[str, str]]] = {"a": [], "b": [], "pairs": []}
    for visit in visits:
        case, place = f"{visit.parent.name}_{visit.name}", visit.relative_to(root)
        if visit in both:
            files = {"a": f"{place}/t1.nii.gz", "b": f"{place}/ct.nii.gz", "body": f"{place}/mask.nii.gz"}
            found["pairs"].append({"case": case, **files})
        elif visit.parent.name not in paired:
            for domain, name in (("a", "t1"), ("b", "ct")):
                if (visit / f"{name}.nii.gz").exists():
                    found[domain].append({"case": case, "image": f"{place}/{name}.nii.gz"})
    return found


if __name__ == "__main__":
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-14")
    cohort = phantom.write_cohort(
        output / "phantoms", train_mr=2, train_ct=2, test=1, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
    )
    # The cohort in that convention: patients p01 and p02 with an MR, p03 and p04 with a CT, p05 with both.
    root = output / "hospital"
    tests = {"t1": cohort.test_mr[0], "ct": cohort.test_ct[0], "mask": cohort.test_mask[0]}
    visits = [*({"t1": file} for file in cohort.train_mr), *({"ct": file} for file in cohort.train_ct), tests]
    for number, files in enumerate(visits, start=1):
        folder = root / f"p{number:02d}" / "visit1"
        folder.mkdir(parents=True)
        for name, file in files.items():
            shutil.copy(file, folder / f"{name}.nii.gz")

    (root / "datalist.json").write_text(json.dumps(datalist(root), indent=2))
    prepared = factory.prepare(
        config.parse({"data": {"source": str(root / "datalist.json")}}, "this example"), output / "prepared"
    )
    print({group: [case.id for case in cases] for group, cases in prepared.cases.items()})
