"""What the bundles' configurations name, and nothing else: ``import mambamim_nets.bundle as mb``."""

from mambamim_nets.bundle.config import announce, bundle_root, flag
from mambamim_nets.bundle.data.datasets import (
    cached,
    dataset_folder,
    fold_cases,
    labelled,
    named,
    source_sampler,
    training_sampler,
    unlabelled,
    validation_sampler,
)
from mambamim_nets.bundle.data.diagnoses import diagnosed, first_fold, subject_part
from mambamim_nets.bundle.data.labelled import channel_order
from mambamim_nets.bundle.data.landmarks import landmark_cases, point_names
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.painted import PaintedCrops
from mambamim_nets.bundle.handlers.checkpoints import Average, Checkpoints
from mambamim_nets.bundle.handlers.classification import (
    ClassReport,
    DecisionReport,
    DecisionThreshold,
    decision_threshold,
)
from mambamim_nets.bundle.handlers.features import FeatureReport
from mambamim_nets.bundle.handlers.identity import run_settings
from mambamim_nets.bundle.handlers.landmarks import LandmarkPicture, LandmarkReport, LandmarkScanReport
from mambamim_nets.bundle.handlers.pretraining import ReconstructionPictures, mim_batch, mim_loss
from mambamim_nets.bundle.handlers.promotion import promote
from mambamim_nets.bundle.handlers.segmentation import CaseReport, ScanReport, ValidationPicture, preview_window
from mambamim_nets.bundle.handlers.training import ClipGradients, EpochSeed, Progress, StopOnNan
from mambamim_nets.bundle.inference.inferers import AutocastInferer, bfloat16_is_fast, tensorrt
from mambamim_nets.bundle.inference.scan_lists import scans
from mambamim_nets.bundle.inference.scan_loader import OneByOne, ScanLoader, finish, named_failures
from mambamim_nets.bundle.io.reader import LoadScand
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.options import rounded_up
from mambamim_nets.bundle.runtime import (
    checkpoint_activations,
    default_device,
    init_distributed,
    interactive,
    launch_device,
    process_rank,
    reuse_memory,
    seed_everything,
)
from mambamim_nets.bundle.start import start_run
from mambamim_nets.bundle.transforms.augmentation import augmentations, distortions
from mambamim_nets.bundle.transforms.channels import SelectChannelsd, stored_order
from mambamim_nets.bundle.transforms.labels import RestoreLabelsd, StructureMasksd
from mambamim_nets.bundle.transforms.landmarks import (
    DecodeLandmarksd,
    HeatmapLoss,
    KeepAffined,
    LandmarkTargetsd,
    radial_errors,
    warmup_quadratic,
    with_affine,
)
from mambamim_nets.bundle.transforms.normalisation import intensity, nonzero
from mambamim_nets.bundle.weights import record, shipped_weights, start_classifier, start_network, trained_network
from mambamim_nets.records import architecture

__all__ = [
    "AutocastInferer",
    "Average",
    "CaseReport",
    "Checkpoints",
    "ClassReport",
    "ClipGradients",
    "DecisionReport",
    "DecisionThreshold",
    "DecodeLandmarksd",
    "EpochSeed",
    "FeatureReport",
    "HeatmapLoss",
    "KeepAffined",
    "LandmarkPicture",
    "LandmarkReport",
    "LandmarkScanReport",
    "LandmarkTargetsd",
    "LoadScand",
    "OneByOne",
    "PaintedCrops",
    "Progress",
    "ReconstructionPictures",
    "RestoreLabelsd",
    "ScanLoader",
    "ScanMemory",
    "ScanReport",
    "SelectChannelsd",
    "StopOnNan",
    "StructureMasksd",
    "Targets",
    "ValidationPicture",
    "announce",
    "architecture",
    "augmentations",
    "bfloat16_is_fast",
    "bundle_root",
    "cached",
    "channel_order",
    "checkpoint_activations",
    "dataset_folder",
    "decision_threshold",
    "default_device",
    "diagnosed",
    "distortions",
    "finish",
    "first_fold",
    "flag",
    "fold_cases",
    "init_distributed",
    "intensity",
    "interactive",
    "labelled",
    "landmark_cases",
    "launch_device",
    "mim_batch",
    "mim_loss",
    "named",
    "named_failures",
    "nonzero",
    "point_names",
    "preview_window",
    "process_rank",
    "promote",
    "radial_errors",
    "record",
    "reuse_memory",
    "rounded_up",
    "run_settings",
    "scans",
    "seed_everything",
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
