"""The rows of docs/BENCHMARKS.md: what is measured, against what, and the goals set before it was written."""

from typing import NamedTuple

NETWORKS = ("UNETR", "SwinUNETR 48", "MedNeXt-B", "DynUNet")
GPU = "CUDA"


class Row(NamedTuple):
    """One comparison. at_least and reach are goals, in the words of the ratio; a share is ours over the baseline."""

    section: str
    what: str
    against: str
    at_least: str = ""
    reach: str = ""
    share: bool = False


def _networks(prefix: str, section: str) -> dict[str, Row]:
    return {
        f"{prefix}-{kind}-{size}-{other}": Row(section, f"{kind} at 96^3, HyMambaSeg {size}", other)
        for kind in ("inference", "training step")
        for size in ("base", "tiny")
        for other in NETWORKS
    }


_STEP = "pre-training step, batch {}, decoder width 768{}"
_BASELINE, _BF16_BASELINE = "dense-masked step with the unread skip", "the same step, bf16 autocast"

ROWS = {
    "cnn": Row(
        "Pre-training",
        "CNN encoder, forward + backward, 75 % masked, batch 1, the skips that the decoder reads",
        "dense-masked",
        "3 x",
        "4 x",
    ),
    "cnn-all": Row("Pre-training", "the same with all four skips", "dense-masked"),
    "step-768": Row("Pre-training", _STEP.format(1, ""), _BASELINE, "1.8 x"),
    "step-768-bf16": Row("Pre-training", _STEP.format(1, ", bf16 autocast"), f"{_BASELINE}, fp32", reach="3 x"),
    "step-768-bf16-both": Row("Pre-training", _STEP.format(1, ", bf16 autocast"), _BF16_BASELINE),
    "step-default": Row("Pre-training", "pre-training step, batch 1, default decoder", _BASELINE, "3 x"),
    "step-default-bf16": Row(
        "Pre-training",
        "pre-training step, batch 1, default decoder, bf16 autocast",
        f"{_BASELINE}, fp32",
        "3 x",
        "6 x",
    ),
    "step-decoder": Row("Pre-training", "pre-training step, batch 1, default decoder", "ours, decoder width 768"),
    **{f"step-batch-{n}": Row("Pre-training", _STEP.format(n, ""), _BASELINE) for n in (2, 4)},
    **{
        f"step-batch-{n}-bf16": Row("Pre-training", _STEP.format(n, ", bf16 autocast"), f"{_BASELINE}, fp32")
        for n in (2, 4)
    },
    "compile": Row("Pre-training", "pre-training step, batch 1, default decoder, torch.compile", "the same, eager"),
    "memory-total": Row(
        "Pre-training",
        "peak memory of a pre-training step, batch 1, decoder width 768: whole process",
        _BASELINE,
        "0.6 of it",
        "0.4 of it",
        share=True,
    ),
    "memory-above": Row(
        "Pre-training",
        "the same above the process with torch imported, model and optimiser built",
        _BASELINE,
        "0.6 of it",
        "0.4 of it",
        share=True,
    ),
    "memory-total-bf16": Row("Pre-training", "whole process, bf16 autocast", f"{_BASELINE}, fp32", share=True),
    "memory-above-bf16": Row("Pre-training", "above, bf16 autocast", f"{_BASELINE}, fp32", share=True),
    "memory-checkpointing": Row("Pre-training", "above, activation checkpointing", "ours without", share=True),
    "memory-reuse": Row(
        "Pre-training", "whole process, freed memory kept (as training does)", "ours without", share=True
    ),
    "faults": Row("Pre-training", "minor page faults of a pre-training step, batch 1", _BASELINE, share=True),
    "faults-reuse": Row("Pre-training", "the same, freed memory kept (as training does)", "ours without", share=True),
    "toki": Row(
        "Token interpolation",
        "TOKI forward + backward, C 384, T 216, batch 4, diagonal (default)",
        "looped TOKI, diagonal",
        "50 x",
        "300 x",
    ),
    "toki-full": Row("Token interpolation", "the same, full matrices", "looped TOKI, matrix powers", "50 x", "300 x"),
    "toki-share": Row(
        "Token interpolation",
        "TOKI forward + backward, batch 1",
        "our pre-training step, decoder width 768",
        "0.01 of it",
        share=True,
    ),
    "scan-216": Row("Selective scan", "forward + backward, (2, 768, 216), N 16", "reference scan", "8 x", "20 x"),
    "scan-216-unbind": Row("Selective scan", "the same", "reference scan, steps cut by unbind"),
    "scan-54": Row("Selective scan", "forward + backward, (2, 768, 54), N 16", "reference scan"),
    "scan-54-unbind": Row("Selective scan", "the same", "reference scan, steps cut by unbind"),
    "scan-110592": Row("Selective scan", "forward + backward, (1, 64, 110592), N 16", "parallel scan", "8 x", "20 x"),
    "scan-110592-memory": Row(
        "Selective scan", "peak memory of the same, above inputs", "parallel scan", "0.1 of it", share=True
    ),
    "window-bf16": Row("Inference", "one 96^3 window, HyMambaSeg base, bf16 autocast", "fp32 eager", "1.6 x", "2.5 x"),
    "norm-bf16": Row(
        "Fine-tuning",
        "training step at 96^3, HyMambaSeg tiny, bf16 autocast",
        "the same with PyTorch's gradient of the decoder's instance norm",
    ),
    **_networks("net", "Whole networks"),
    "gpu-step": Row(GPU, "pre-training step, base, batch 4, bf16 autocast", f"{_BASELINE}, bf16 autocast"),
    "gpu-mamba": Row(GPU, "encoder forward + backward, base, one direction", "the same with mamba_ssm.Mamba mixers"),
    **_networks("gpu", GPU),
}
