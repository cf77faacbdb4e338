"""Names of structures, regions and classes come from the bundle's metadata, the one place where they stand."""

import json
import shutil

import pytest
from helpers import BUNDLES
from monai.bundle import ConfigParser

from mambamim_nets.bundle.metadata import label_table, metadata_entry, region_table

LABELS = {"0": "background", "2": "oedema", "1": "necrotic core", "4": "enhancing tumour"}


def bundle(folder, **pred):
    (folder / "configs").mkdir()
    data = {"network_data_format": {"outputs": {"pred": {"classes": ["NC", "AD"]}}, "post_processed_outputs": {}}}
    data["network_data_format"]["post_processed_outputs"]["pred"] = pred
    (folder / "configs" / "metadata.json").write_text(json.dumps(data))
    return folder


def test_labels_keep_the_order_of_the_metadata_and_background_is_left_out(tmp_path):
    root = bundle(tmp_path, label_def=LABELS)
    table = label_table(root)
    assert list(table.items()) == [("oedema", 2), ("necrotic core", 1), ("enhancing tumour", 4)]
    assert label_table(root, {"enhancing tumour": 3}) == {"oedema": 2, "necrotic core": 1, "enhancing tumour": 3}
    assert metadata_entry(root, "classes") == ["NC", "AD"]


def test_regions_are_lists_of_structures(tmp_path):
    regions = {"TC": ["necrotic core", "enhancing tumour"], "ET": ["enhancing tumour"]}
    root = bundle(tmp_path, label_def=LABELS, regions=regions)
    assert region_table(root, {"necrotic core": 1, "enhancing tumour": 3}) == {"TC": [1, 3], "ET": [3]}
    with pytest.raises(ValueError, match=r"region 'TC' in .*metadata.json must consist of necrotic core, not of enh"):
        region_table(root, {"necrotic core": 1})


@pytest.mark.parametrize(
    ("pred", "changed", "message"),
    [
        ({}, None, "must have 'label_def' in network_data_format"),
        ({"label_def": ["liver"]}, None, 'must be a table {"1": "name", ...}'),
        ({"label_def": {"one": "liver"}}, None, 'must be a table {"1": "name", ...}'),
        ({"label_def": {"1": "liver", "2": "liver"}}, None, "must have different names"),
        ({"label_def": {"1": "liver"}}, {"spleen": 2}, "has no spleen; it has liver"),
    ],
)
def test_metadata_that_name_nothing_are_refused(pred, changed, message, tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.json") as caught:
        label_table(bundle(tmp_path, **pred), changed)
    assert message in str(caught.value)


def test_a_bundle_without_metadata_is_refused_and_so_is_what_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="must be there: it names what the bundle finds"):
        label_table(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON with network_data_format"):
        label_table(tmp_path)


def test_one_change_of_a_name_reaches_training_and_inference(tmp_path):
    root = tmp_path / "btcv_seg"
    shutil.copytree(BUNDLES / "btcv_seg" / "configs", root / "configs")
    (root / "models").mkdir()
    (root / "models" / "model.pt").touch()  # that it is there is asked for, and no more here
    path = root / "configs" / "metadata.json"
    path.write_text(path.read_text().replace('"13": "left adrenal gland"', '"13": "left suprarenal gland"'))
    for config in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(root / "configs" / f"{config}.json")
        parser["bundle_root"] = str(root)
        assert parser.get_parsed_content("targets").channels[13] == "left suprarenal gland"
        assert parser.get_parsed_content("record")["labels"][-1] == "left suprarenal gland"
