"""Write unit tests of the bundles in the form of the MONAI Model Zoo, `ci/unit_tests/test_<bundle>.py`, for a request.

    python .ci/zoo_tests.py dist/unit_tests

Each file stands alone: in the root of the zoo, where bundles lie in `models`, it trains, evaluates and runs its bundle
on a few synthetic scans, with the small settings of this project's own tests.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from small import SMALL  # noqa: E402

# more scans where they are split into three parts of two classes; scans of a few seconds where any would do
CASES, KINDS = {"brain_cls": 24}, {"pretrain": "hippocampus"}
TEMPLATE = '''"""Unit test of the bundle {name}: its configurations on synthetic scans."""

import json
import tempfile
import unittest
from pathlib import Path

from mambamim_nets import phantom
from monai.bundle import ConfigWorkflow

BUNDLE = Path("models", "{name}").resolve()
SMALL = {small}


class TestBundle(unittest.TestCase):
    """Runs every configuration once; what the network finds after one epoch says nothing."""

    def run_workflow(self, kind: str, *configs: str, **options) -> None:
        files = [BUNDLE / "configs" / f"{{config}}.json" for config in configs]
        known = {{key for file in files for key in json.loads(file.read_text())}}
        options = {{key: value for key, value in {{**SMALL, **options}}.items() if key in known}}
        workflow = ConfigWorkflow(
            config_file=[str(file) for file in files], workflow_type=kind, bundle_root=str(BUNDLE), logging_file=False,
            **options,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_every_configuration(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            data = phantom.write(Path(folder, "data"), "{kind}", cases={cases}, spacing={spacing})
            run = {{"output_dir": f"{{folder}}/run", "dataset_dir": str(data)}}
            self.run_workflow("train", "train", max_epochs=1, val_interval=1, **run)
            weights = Path(folder, "run", "{weights}")
            self.assertTrue(weights.is_file())
            if (BUNDLE / "configs" / "evaluate.json").is_file():
                self.run_workflow("train", "train", "evaluate", **run)
                self.assertTrue(Path(folder, "run", "eval", "summary.md").is_file())
            found = {{"input": str(data / "imagesTs"), "output_dir": f"{{folder}}/found", "checkpoint": str(weights)}}
            self.run_workflow("infer", "inference", **found)
            self.assertTrue(any(Path(folder, "found").iterdir()))


if __name__ == "__main__":
    unittest.main()
'''


def main(folder: Path) -> None:
    """Write the test of each bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, small in SMALL.items():
        options = {key: value for key, value in small.items() if key != "device"}
        settings = json.loads((ROOT / "bundles" / name / "configs" / "train.json").read_text(encoding="utf-8"))
        text = TEMPLATE.format(
            name=name,
            small=repr(options),
            kind=KINDS.get(name, settings["phantom"]["kind"]),
            cases=CASES.get(name, 5),
            spacing=options.get("spacing"),
            weights="encoder.pt" if name == "pretrain" else "model_best.pt",
        )
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
