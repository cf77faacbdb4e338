"""The callables that the bundles' configurations name."""

from mambamim_nets.bundle.channels import channel_of, modality_of
from mambamim_nets.bundle.check import check_labelled, check_unlabelled
from mambamim_nets.bundle.checkpoints import Average, Checkpoints
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
from mambamim_nets.bundle.inferers import AutocastInferer, bfloat16_is_fast, tensorrt
from mambamim_nets.bundle.launch import (
    announce,
    bundle_root,
    check_overrides,
    dataset_folder,
    default_device,
    flag,
    init_distributed,
    interactive,
    launch_device,
    seed_everything,
    shipped_weights,
    start_network,
    task_spec,
    trained_network,
)
from mambamim_nets.bundle.layouts import channel_order, labelled_cases
from mambamim_nets.bundle.memory import checkpoint_activations, reuse_memory
from mambamim_nets.bundle.painted import PaintedCrops
from mambamim_nets.bundle.pictures import overlay, reconstruction
from mambamim_nets.bundle.promote import promote
from mambamim_nets.bundle.report import CaseReport, FeatureReport, ScanReport, ValidationPicture, preview_window
from mambamim_nets.bundle.scans import LoadScand, ScanLoader, finish, scans
from mambamim_nets.bundle.tables import MetricsTable, case_metrics
from mambamim_nets.bundle.targets import RestoreLabelsd, StructureMasksd, Targets
from mambamim_nets.bundle.transforms import SelectChannelsd, augmentations, intensity, nonzero, stored_order

__all__ = [
    "AutocastInferer",
    "Average",
    "CaseReport",
    "Checkpoints",
    "ClipGradients",
    "EpochSeed",
    "FeatureReport",
    "LoadScand",
    "MetricsTable",
    "PaintedCrops",
    "Progress",
    "ReconstructionPictures",
    "RestoreLabelsd",
    "ScanLoader",
    "ScanReport",
    "SelectChannelsd",
    "StopOnNan",
    "StructureMasksd",
    "Targets",
    "ValidationPicture",
    "announce",
    "augmentations",
    "bfloat16_is_fast",
    "bundle_root",
    "cached",
    "case_metrics",
    "channel_of",
    "channel_order",
    "check_labelled",
    "check_overrides",
    "check_unlabelled",
    "checkpoint_activations",
    "dataset_folder",
    "default_device",
    "finish",
    "flag",
    "fold_cases",
    "folds",
    "init_distributed",
    "intensity",
    "interactive",
    "labelled",
    "labelled_cases",
    "launch_device",
    "limit_cases",
    "listed_parts",
    "mim_batch",
    "mim_loss",
    "modality_of",
    "named",
    "nonzero",
    "overlay",
    "preview_window",
    "promote",
    "reconstruction",
    "reuse_memory",
    "scans",
    "seed_everything",
    "shipped_weights",
    "source_sampler",
    "split",
    "start_network",
    "stored_order",
    "task_spec",
    "tensorrt",
    "trained_network",
    "training_sampler",
    "unlabelled",
    "unlabelled_images",
    "validation_sampler",
    "with_listed_parts",
]
