"""The callables that the bundles' configurations name."""

from mambamim_nets.bundle.channels import channel_of, modality_of
from mambamim_nets.bundle.check import check_labelled, check_unlabelled
from mambamim_nets.bundle.checkpoints import Average, Checkpoints
from mambamim_nets.bundle.classify import (
    ClassReport,
    DecisionReport,
    DecisionThreshold,
    decision_threshold,
    start_classifier,
)
from mambamim_nets.bundle.data import (
    cached,
    fold_cases,
    labelled,
    named,
    source_sampler,
    training_sampler,
    unlabelled,
    validation_sampler,
)
from mambamim_nets.bundle.datalist import unlabelled_images
from mambamim_nets.bundle.folds import folds, limit_cases, listed_parts, split, with_listed_parts
from mambamim_nets.bundle.handlers import (
    ClipGradients,
    EpochSeed,
    Progress,
    ReconstructionPictures,
    StopOnNan,
    mim_batch,
    mim_loss,
)
from mambamim_nets.bundle.heatmaps import (
    DecodeLandmarksd,
    HeatmapLoss,
    KeepAffined,
    LandmarkTargetsd,
    decode_heatmaps,
    heatmaps,
    radial_errors,
    warmup_quadratic,
    with_affine,
)
from mambamim_nets.bundle.identity import run_settings
from mambamim_nets.bundle.inferers import AutocastInferer, bfloat16_is_fast, tensorrt
from mambamim_nets.bundle.landmark_data import landmark_cases, point_names
from mambamim_nets.bundle.landmark_files import read_markups, read_table, write_markups, write_table
from mambamim_nets.bundle.landmark_pictures import landmark_overlay, sdr_curve
from mambamim_nets.bundle.landmark_report import LandmarkPicture, LandmarkReport, LandmarkScanReport
from mambamim_nets.bundle.landmark_tables import LandmarkCase, LandmarkTable
from mambamim_nets.bundle.launch import (
    announce,
    bundle_root,
    dataset_folder,
    default_device,
    flag,
    init_distributed,
    interactive,
    launch_device,
    process_rank,
    seed_everything,
    shipped_weights,
    start_network,
    task_spec,
    trained_network,
)
from mambamim_nets.bundle.layouts import channel_order, labelled_cases
from mambamim_nets.bundle.loading import LoadScand
from mambamim_nets.bundle.memory import ScanMemory, checkpoint_activations, reuse_memory
from mambamim_nets.bundle.options import rounded_up
from mambamim_nets.bundle.painted import PaintedCrops
from mambamim_nets.bundle.pictures import overlay, reconstruction
from mambamim_nets.bundle.promote import promote
from mambamim_nets.bundle.report import CaseReport, FeatureReport, ScanReport, ValidationPicture, preview_window
from mambamim_nets.bundle.scan_loader import OneByOne, ScanLoader, finish, named_failures
from mambamim_nets.bundle.scans import scans
from mambamim_nets.bundle.start import start_run
from mambamim_nets.bundle.subjects import diagnosed, first_fold, subject_part
from mambamim_nets.bundle.tables import MetricsTable, case_metrics
from mambamim_nets.bundle.targets import RestoreLabelsd, StructureMasksd, Targets
from mambamim_nets.bundle.transforms import (
    SelectChannelsd,
    augmentations,
    distortions,
    intensity,
    nonzero,
    stored_order,
)
from mambamim_nets.bundle.weights import record, spacing_of
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
    "LandmarkCase",
    "LandmarkPicture",
    "LandmarkReport",
    "LandmarkScanReport",
    "LandmarkTable",
    "LandmarkTargetsd",
    "LoadScand",
    "MetricsTable",
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
    "case_metrics",
    "channel_of",
    "channel_order",
    "check_labelled",
    "check_unlabelled",
    "checkpoint_activations",
    "dataset_folder",
    "decision_threshold",
    "decode_heatmaps",
    "default_device",
    "diagnosed",
    "distortions",
    "finish",
    "first_fold",
    "flag",
    "fold_cases",
    "folds",
    "heatmaps",
    "init_distributed",
    "intensity",
    "interactive",
    "labelled",
    "labelled_cases",
    "landmark_cases",
    "landmark_overlay",
    "launch_device",
    "limit_cases",
    "listed_parts",
    "mim_batch",
    "mim_loss",
    "modality_of",
    "named",
    "named_failures",
    "nonzero",
    "overlay",
    "point_names",
    "preview_window",
    "process_rank",
    "promote",
    "radial_errors",
    "read_markups",
    "read_table",
    "reconstruction",
    "record",
    "reuse_memory",
    "rounded_up",
    "run_settings",
    "scans",
    "sdr_curve",
    "seed_everything",
    "shipped_weights",
    "source_sampler",
    "spacing_of",
    "split",
    "start_classifier",
    "start_network",
    "start_run",
    "stored_order",
    "subject_part",
    "task_spec",
    "tensorrt",
    "trained_network",
    "training_sampler",
    "unlabelled",
    "unlabelled_images",
    "validation_sampler",
    "warmup_quadratic",
    "with_affine",
    "with_listed_parts",
    "write_markups",
    "write_table",
]
