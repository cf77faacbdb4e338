"""What the bundles' configurations name, and nothing else: ``import mambamim_nets.bundle as mb``."""

from mambamim_nets.bundle.config import announce, bundle_root
from mambamim_nets.bundle.data.datasets import (
    ReplaceUnreadabled,
    dataset_folder,
    fold_cases,
    labelled,
    scan_source,
    source_sampler,
    training_sampler,
    unlabelled,
    validation_sampler,
)
from mambamim_nets.bundle.data.diagnoses import diagnosed, first_fold, subject_part
from mambamim_nets.bundle.data.disk_cache import DiskCache
from mambamim_nets.bundle.data.labelled import channel_order
from mambamim_nets.bundle.data.landmarks import landmark_cases, point_names
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.painted import PaintedCrops
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.data.store_crops import StoreCrops, StoreSampler
from mambamim_nets.bundle.handlers.checkpoints import Average, Checkpoints
from mambamim_nets.bundle.handlers.classification import (
    ClassReport,
    DecisionReport,
    DecisionThreshold,
    decision_threshold,
)
from mambamim_nets.bundle.handlers.epoch_log import EpochLog, ValidationLog
from mambamim_nets.bundle.handlers.features import FeatureReport
from mambamim_nets.bundle.handlers.landmarks import LandmarkPicture, LandmarkReport, LandmarkScanReport
from mambamim_nets.bundle.handlers.pretraining import ReconstructionPictures, mim_batch, mim_loss
from mambamim_nets.bundle.handlers.probe import LinearProbe
from mambamim_nets.bundle.handlers.promotion import promote
from mambamim_nets.bundle.handlers.run_estimate import RunEstimate
from mambamim_nets.bundle.handlers.segmentation import CaseReport, ScanReport, ValidationPicture, preview_window
from mambamim_nets.bundle.handlers.training import (
    AccumulateGradients,
    ClipGradients,
    EpochSeed,
    Progress,
    ReuseMemory,
    StopOnNan,
)
from mambamim_nets.bundle.handlers.training_ranges import TrainingRanges
from mambamim_nets.bundle.inference.inferers import AutocastInferer, EnsembleInferer, bfloat16_is_fast, tensorrt
from mambamim_nets.bundle.inference.known_scans import KnownScand
from mambamim_nets.bundle.inference.scan_lists import scans
from mambamim_nets.bundle.inference.scan_loader import OneByOne, ScanLoader, finish, named_failures
from mambamim_nets.bundle.io.scan_formats import LoadScand
from mambamim_nets.bundle.labels import PartialLabelLoss, RegionLoss, Targets
from mambamim_nets.bundle.metadata import label_table, metadata_entry, region_table
from mambamim_nets.bundle.runtime import (
    checkpoint_activations,
    init_distributed,
    interactive,
    launch_device,
    process_rank,
)
from mambamim_nets.bundle.start import start_run
from mambamim_nets.bundle.transforms.channels import SelectChannelsd, stored_order
from mambamim_nets.bundle.transforms.field_of_view import RandFieldOfViewd
from mambamim_nets.bundle.transforms.genesis import distortions
from mambamim_nets.bundle.transforms.labels import KeepPartsd, RestoreLabelsd, StructureMasksd
from mambamim_nets.bundle.transforms.landmarks import (
    DecodeLandmarksd,
    HeatmapLoss,
    KeepAffined,
    LandmarkTargetsd,
    radial_errors,
    warmup_quadratic,
    with_affine,
)
from mambamim_nets.bundle.transforms.normalisation import RequireFinited, ScaleCTOrMRd, nonzero
from mambamim_nets.bundle.transforms.probabilities import RestoreProbabilitiesd
from mambamim_nets.bundle.transforms.stored import DrawVisibled, ScaleStoredd
from mambamim_nets.bundle.weights import record, shipped_weights, start_classifier, start_network, trained_network
from mambamim_nets.records import architecture

__all__ = [
    "AccumulateGradients",
    "AutocastInferer",
    "Average",
    "CaseReport",
    "Checkpoints",
    "ClassReport",
    "ClipGradients",
    "DecisionReport",
    "DecisionThreshold",
    "DecodeLandmarksd",
    "DiskCache",
    "DrawVisibled",
    "EnsembleInferer",
    "EpochLog",
    "EpochSeed",
    "FeatureReport",
    "HeatmapLoss",
    "KeepAffined",
    "KeepPartsd",
    "KnownScand",
    "LandmarkPicture",
    "LandmarkReport",
    "LandmarkScanReport",
    "LandmarkTargetsd",
    "LinearProbe",
    "LoadScand",
    "OneByOne",
    "PaintedCrops",
    "PartialLabelLoss",
    "Progress",
    "RandFieldOfViewd",
    "ReconstructionPictures",
    "RegionLoss",
    "ReplaceUnreadabled",
    "RequireFinited",
    "RestoreLabelsd",
    "RestoreProbabilitiesd",
    "ReuseMemory",
    "RunEstimate",
    "ScaleCTOrMRd",
    "ScaleStoredd",
    "ScanLoader",
    "ScanMemory",
    "ScanReport",
    "SelectChannelsd",
    "StopOnNan",
    "Store",
    "StoreCrops",
    "StoreSampler",
    "StructureMasksd",
    "Targets",
    "TrainingRanges",
    "ValidationLog",
    "ValidationPicture",
    "announce",
    "architecture",
    "bfloat16_is_fast",
    "bundle_root",
    "channel_order",
    "checkpoint_activations",
    "dataset_folder",
    "decision_threshold",
    "diagnosed",
    "distortions",
    "finish",
    "first_fold",
    "fold_cases",
    "init_distributed",
    "interactive",
    "label_table",
    "labelled",
    "landmark_cases",
    "launch_device",
    "metadata_entry",
    "mim_batch",
    "mim_loss",
    "named_failures",
    "nonzero",
    "point_names",
    "preview_window",
    "process_rank",
    "promote",
    "radial_errors",
    "record",
    "region_table",
    "scan_source",
    "scans",
    "shipped_weights",
    "source_sampler",
    "start_classifier",
    "start_network",
    "start_run",
    "stored_order",
    "subject_part",
    "tensorrt",
    "trained_network",
    "training_sampler",
    "unlabelled",
    "validation_sampler",
    "warmup_quadratic",
    "with_affine",
]
