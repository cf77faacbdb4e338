"""A MONAI Deploy application: a CT series in, a DICOM-SEG out, by a segmentation bundle as it is.

    python docs/deploy/segment_dicom.py -i path/to/dicom_folder -m bundles/btcv_seg -o results

The SDK reads the series, the bundle's own inference.json is run by its MonaiBundleInferenceOperator, and the SDK writes
the DICOM-SEG, with the names and codes of the bundle's metadata. For bundles of one channel; see docs/DEPLOYMENT.md.
"""

import json
import os
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSegmentationWriterOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    MonaiBundleInferenceOperator,
)
from monai.deploy.operators.dicom_seg_writer_operator import SegmentDescription
from monai.deploy.operators.monai_bundle_inference_operator import BundleConfigNames, IOMapping
from pydicom.sr.coding import Code

import mambamim_nets

# the first CT series of the study with image slices
RULES = {"selections": [{"name": "CT", "conditions": {"Modality": "CT", "ImageType": ["PRIMARY"]}}]}


def segment_descriptions(bundle: Path) -> list[SegmentDescription]:
    """Return what each label of a bundle is, by the names and codes of its metadata."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    result = metadata["network_data_format"]["post_processed_outputs"]["pred"]
    labels = {int(value): name for value, name in result["label_def"].items() if value != "0"}
    if sorted(labels) != list(range(1, len(labels) + 1)):
        raise ValueError(
            f"labels of {bundle} must be 1, 2, ... without gaps for the SDK's writer, are {sorted(labels)}"
        )
    described = []
    for _, name in sorted(labels.items()):
        codes = result["segment_codes"][name]
        regions = [Code(*code) for code in codes.get("regions", [])]
        described.append(
            SegmentDescription(
                segment_label=name,
                segmented_property_category=Code(*codes["category"]),
                segmented_property_type=Code(*codes["type"]),
                algorithm_name=metadata["name"][:64],
                algorithm_version=mambamim_nets.__version__,
                anatomic_regions=regions or None,
            )
        )
    return described


class SegmentDicom(Application):
    """Segment the first CT series of a folder."""

    def compose(self) -> None:
        """Connect reading, inference and writing."""
        context = Application.init_app_context(self.argv)
        paths = (context.input_path, context.model_path, context.output_path)
        source, bundle, results = (Path(path).absolute() for path in paths)
        context.models = None  # the SDK takes a folder for a model that it cannot run; the operator loads it itself
        os.chdir(bundle)  # a bundle that no workflow of MONAI runs looks for its files in the working directory
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=source, name="load")
        select = DICOMSeriesSelectorOperator(self, rules=json.dumps(RULES), name="select")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        segment = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_path=bundle,
            # with windows of air left out, as the bundle itself does
            bundle_config_names=BundleConfigNames(config_names=["inference"], inferer_name="ensemble_inferer"),
            name="segment",
        )
        write = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segment_descriptions(bundle), output_folder=results, name="write"
        )
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, segment, {("image", "image")})
        self.add_flow(select, write, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(segment, write, {("pred", "seg_image")})


if __name__ == "__main__":
    SegmentDicom().run()
