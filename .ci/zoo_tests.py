"""Write unit tests of the bundles in the form of the MONAI Model Zoo, `ci/unit_tests/test_<bundle>.py`, for a request.

    python .ci/zoo_tests.py dist/unit_tests

Each file stands alone: in the root of the zoo, where bundles lie in `models`, it trains, evaluates and runs its bundle
on a few synthetic scans, with the small settings of this project's own tests.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from small import SMALL  # noqa: E402

TEMPLATE = '''"""Unit test of the bundle {name}: training, evaluation and inference on synthetic scans."""

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
        options = {{**{{key: value for key, value in SMALL.items() if key in known}}, **options}}
        workflow = ConfigWorkflow(
            config_file=[str(file) for file in files], workflow_type=kind, bundle_root=str(BUNDLE), logging_file=False,
            **options,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_train_evaluate_infer(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = json.loads((BUNDLE / "configs" / "train.json").read_text())["phantom"]["kind"]
            data = phantom.write(Path(folder, "data"), made, cases=5, spacing={spacing})
            run = {{"output_dir": f"{{folder}}/run", "dataset_dir": str(data)}}
            self.run_workflow("train", "train", max_epochs=1, val_interval=1, **run)
            self.run_workflow("train", "train", "evaluate", **run)
            weights = Path(folder, "run", "model_best.pt")
            self.assertTrue(weights.is_file())
            self.assertTrue(Path(folder, "run", "eval", "summary.md").is_file())
            found = {{"input": str(data / "imagesTs"), "output_dir": f"{{folder}}/found", "checkpoint": str(weights)}}
            self.run_workflow("infer", "inference", **found)
            self.assertTrue(any(Path(folder, "found").iterdir()))


if __name__ == "__main__":
    unittest.main()
'''


def main(folder: Path) -> None:
    """Write the tests of the segmentation bundles."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, small in SMALL.items():
        if not name.endswith("_seg"):
            continue
        options = {key: value for key, value in small.items() if key != "device"}
        text = TEMPLATE.format(name=name, small=repr(options), spacing=options.get("spacing"))
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
