"""The page on adding a data set keeps its word: its block above the shared body is a bundle."""

import json
import re
import shutil

from helpers import REPOSITORY
from monai.bundle import ConfigWorkflow

OWN = ("models", "runs", "phantom", "predictions", "folds.json", "starter.json")


def test_the_documented_block_makes_a_bundle(data, tmp_path):
    page = (REPOSITORY / "docs" / "ADDING_A_DATASET.md").read_text()
    block, names = (text.strip().rstrip(",") for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    task = json.loads("{" + block + "}")["task"]
    assert not any(f'"task": "{task}"' in path.read_text() for path in REPOSITORY.glob("bundles/*/configs/train.json"))
    bundle = shutil.copytree(REPOSITORY / "bundles" / "btcv_seg", tmp_path / "new", ignore=shutil.ignore_patterns(*OWN))
    train = bundle / "configs" / "train.json"
    head, body = train.read_text().split('    "body"', 1)
    common = [line for line in head.splitlines() if '"imports"' in line or '"bundle_root"' in line]
    train.write_text("\n".join(["{", *common, block + ",", '    "body"' + body]))
    metadata = bundle / "configs" / "metadata.json"
    described = re.sub(r'"label_def": \{[^{}]*\}', names, metadata.read_text())
    assert (
        json.loads(described)["network_data_format"]["post_processed_outputs"]["pred"]["label_def"]["12"] == "duodenum"
    )
    metadata.write_text(described)

    options = {"dataset_dir": str(data), "bundle_root": str(bundle), "output_dir": str(tmp_path / "run")}
    workflow = ConfigWorkflow(config_file=str(train), workflow_type="train", logging_file=False, **options)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.parser.get_parsed_content("network_def").out_channels == 14
    assert workflow.parser.get_parsed_content("labels")["left kidney"] == 13
    assert workflow.parser.get_parsed_content("spacing") == [4.0, 4.0, 4.0]
