"""The whole job from Python: phantom patients, a very short training, one conversion, its score.

python examples/01_python_api.py OUTPUT_FOLDER
"""

import sys
from pathlib import Path

from medcyclegan import config, evaluate, factory, load_translator, phantom

output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-01")

# MR and CT of different phantom heads for training, and one head with both for the test.
cohort = phantom.write_cohort(
    output / "phantoms", train_mr=2, train_ct=2, test=1, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
)

# An experiment is plain data; what is not said keeps its default. Twenty steps teach nothing, but show the way.
experiment = config.parse(
    {
        "data": {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)},
        "model": {"generator": {"filters": 8, "blocks": 2}, "discriminator": {"filters": 8, "layers": 1}},
        "training": {"steps": 20, "log_every": 10},
    },
    "this example",
)
factory.train(experiment, output / "run")

translate = load_translator(output / "run")
sct = translate(cohort.test_mr[0])
sct.save(output / "case_001_sct.nii.gz")
print(f"synthetic CT: {sct.array.shape}, {sct.array.dtype}, {sct.array.min()} to {sct.array.max()} HU")

scores = evaluate(output / "case_001_sct.nii.gz", cohort.test_ct[0], masks=cohort.test_mask[0])
print(f"MAE in the body: {scores.summary['metrics']['mae']['mean']:.0f} HU")
