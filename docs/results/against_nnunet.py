"""Train nnU-Net on one fold for as many minutes of one core as a network of ours had, and measure it in the same way.

    OMP_NUM_THREADS=1 python docs/results/against_nnunet.py DATA FOLDS --minutes 10 --output build/nnunet --results FILE

It needs `pip install nnunetv2==2.8.1` beside this package. DATA is a Decathlon folder of one channel, FOLDS a file of
folds as `--fold_file` takes it, FILE what the result goes to, in the form that `reproduce --results` has. nnU-Net plans
and prepares the data itself (3d_fullres, not counted in the minutes) and trains with its own trainer, augmentation,
loss and optimiser, in float32, since it has no other precision on a CPU. What is cut: it ends when its process has used
the minutes, the learning rate falls to 0 over them as over its 1000 epochs, and no batch is validated on the way. The
last weights predict the fold by its own validation, mirrored along all axes. The same command again goes on after what
is planned and prepared, and refuses a FILE that is there.
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import fire

DATASET = 1


def _prepare(data: Path, folds_file: str, work: Path) -> tuple[Path, dict[str, list[int]]]:
    """Bring a Decathlon folder to nnU-Net's names, plan and preprocess it, and store the folds."""
    from mambamim_nets.bundle.data.splits import folds

    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    cases = {Path(item["image"]).name.removesuffix(".nii.gz"): item for item in described["training"]}
    name = f"Dataset{DATASET:03d}_{described['name'].replace(' ', '')}"
    raw, prepared = work / "raw" / name, work / "preprocessed" / name
    labels = {text: int(value) for value, text in described["labels"].items() if int(value)}
    if not (prepared / "splits_final.json").is_file():
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        for case, item in cases.items():
            for link, file in ((f"imagesTr/{case}_0000.nii.gz", "image"), (f"labelsTr/{case}.nii.gz", "label")):
                (raw / link).unlink(missing_ok=True)
                (raw / link).symlink_to((data / item[file]).resolve())
        content = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **labels},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"))]
        subprocess.run([*command, "-d", str(DATASET), "-c", "3d_fullres", "-np", "1", "-npfp", "1"], check=True)
        parts = folds([{"case": case} for case in cases], folds_file)
        split = [{"train": sorted(set(cases) - set(part)), "val": part} for part in parts]
        (prepared / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    return prepared, {text: [value] for text, value in labels.items()}


def _train(prepared: Path, fold: int, minutes: float) -> tuple[Path, dict[str, float | str]]:
    """Train a fold for some minutes of the processor; return the folder of its predictions, and what it took."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class ForMinutes(nnUNetTrainer):
        def run_training(self) -> None:
            self.on_train_start()
            self.network.train()
            begun, done, losses, used = time.process_time(), 0, [], 0.0
            schedule = type(self.lr_scheduler)(self.optimizer, self.initial_lr, minutes)
            while (used := (time.process_time() - begun) / 60) < minutes:
                schedule.step(used)
                losses.append(float(self.train_step(next(self.dataloader_train))["loss"]))
                done += 1
                if done % 10 == 0:
                    self.print_to_log_file(
                        f"{used:.1f} of {minutes:g} min, {done} iterations, {sum(losses[-10:]) / 10:.4f}"
                    )
            self.took = {"minutes": round(used, 2), "iterations": done, "batch_size": self.batch_size}
            self.on_train_end()

    plans = json.loads((prepared / "nnUNetPlans.json").read_text(encoding="utf-8"))
    described = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = ForMinutes({**plans, "continue_training": False}, "3d_fullres", fold, described, torch.device("cpu"))
    trainer.run_training()
    trainer.perform_actual_validation()
    roi = plans["configurations"]["3d_fullres"]["patch_size"]
    return Path(trainer.output_folder, "validation"), {**trainer.took, "patch": " x ".join(map(str, roi))}


def _measure(predicted: Path, data: Path, structures: dict[str, list[int]]) -> dict[str, dict[str, list[float]]]:
    """Return Dice and HD95 of every predicted case, on its own grid."""
    import nibabel as nib
    import numpy as np

    from mambamim_nets.bundle.metrics.segmentation import case_metrics

    measured = {}
    for path in sorted(predicted.glob("*.nii.gz")):
        found, true = nib.load(path), nib.load(data / "labelsTr" / path.name)
        maps = [np.asarray(image.dataobj).round().astype(np.int16) for image in (found, true)]
        row = case_metrics(*maps, structures, true.header.get_zooms()[:3])
        measured[path.name.removesuffix(".nii.gz")] = {
            name: [None if math.isnan(of[metric]) else round(of[metric], 6) for metric in ("dice", "hd95")]
            for name, of in row.items()
        }
    return measured


def main(data: str, folds_file: str, minutes: float, output: str, results: str, fold: int = 0) -> None:
    """Train, predict, measure, and write the file of results."""
    file, work, source = Path(results), Path(output).resolve(), Path(data).resolve()
    if file.exists():
        raise SystemExit(f"{file} is there; name another --results, or remove it")
    folders = {"raw": work / "raw", "preprocessed": work / "preprocessed", "results": work / f"results_{minutes:g}min"}
    os.environ.update({f"nnUNet_{name}": str(folder) for name, folder in folders.items()}, nnUNet_def_n_proc="1")
    prepared, structures = _prepare(source, folds_file, work)
    os.environ.update(nnUNet_n_proc_DA="0")  # augmentation in this process, so that its time counts; planning refuses 0
    predicted, took = _train(prepared, fold, minutes)
    from importlib.metadata import version

    cases = _measure(predicted, source, structures)
    head = {
        "date": date.today().isoformat(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, one thread",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("nnunetv2", "torch", "numpy")),
        "device": "cpu",
        "settings": [f"nnU-Net 3d_fullres, fold {fold}, {minutes:g} minutes", json.dumps(took)],
        "metrics": ["dice", "hd95_mm"],
    }
    lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(of)}" for case, of in cases.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "cases": {{\n{lines}\n }}\n}}\n')
    for name in structures:
        values = [of[name][0] for of in cases.values()]
        print(f"{name}: Dice {sum(values) / len(values):.4f} over {len(values)} cases")


if __name__ == "__main__":
    fire.Fire(main)
