"""Segment scans from Python: a bundle's own inference.json, run by MONAI's ConfigWorkflow, with its network kept.

There is no second pipeline. A call points the workflow of the bundle to one scan and to a temporary folder, runs it,
and hands back what it wrote; so the label map is that of ``python -m monai.bundle run``, voxel by voxel, and so are the
checks, the warnings and the sentences of errors. What does not depend on the scan, such as the network with its
weights, is made by the first call and used by those after it; what depends on it is made anew and dropped afterwards.

Calls may come from several threads. Those that share a loaded bundle wait for one another; results share nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.data import MetaTensor

from mambamim_nets.bundle.errors import cause_of, first_line
from mambamim_nets.bundle.files import atomic_write, read_json, release
from mambamim_nets.bundle.handlers.identity import References
from mambamim_nets.bundle.weights import weights_files

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Segmentation", "bundle_folder", "segment"]

logger = logging.getLogger("mambamim_nets")

PathOrName = str | os.PathLike[str]
Scan = str | os.PathLike[str] | nib.spatialimages.SpatialImage | MetaTensor
OF_A_SCAN = {"input", "output_dir"}  # options that change from call to call
OWN = {*OF_A_SCAN, "source", "overwrite"}  # options that a call sets itself
UNITS = " (ml)"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one scan.

    Attributes:
        name: of the scan; "image" for one that was handed over in memory.
        labels: the label map, uint8, on the grid of the scan.
        volumes: ml by structure.
        warnings: what is doubtful about the scan or the result, on one line; "" if nothing is.
        report: what was read, with what, and what it took: of report.json what belongs to this scan.
        files: what the bundle wrote for this scan, by file name.
    """

    name: str
    labels: nib.Nifti1Image
    volumes: dict[str, float]
    warnings: str
    report: dict[str, Any] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)

    def __repr__(self) -> str:
        found = ", ".join(f"{structure} {volume:.1f} ml" for structure, volume in self.volumes.items() if volume)
        return f"Segmentation({self.name!r}: {found or 'nothing was found'})"

    @property
    def probabilities(self) -> nib.Nifti1Image:
        """The probability of each channel on the grid of the scan (D, H, W, channels), background first if it has one.

        Raises:
            ValueError: the scan was segmented without probabilities=True.
        """
        content = gzip.decompress(self._file("probabilities.nii.gz", "probabilities=True"))
        return nib.Nifti1Image.from_bytes(content)

    def preview(self) -> Image:
        """Return the picture of three planes with the structures and their volumes; notebooks show it.

        Raises:
            ValueError: the scan was segmented with previews=False.
        """
        from PIL import Image

        return Image.open(io.BytesIO(self._file("preview.png", "previews=True")))

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Write the files that the bundle writes for a scan, such as label map and preview, and `<name>_report.json`.

        Args:
            folder: made where it does not exist.
            overwrite: replace files that are there.

        Returns:
            What was written.

        Raises:
            FileExistsError: a file is there, and `overwrite` is false; nothing is written then.
        """
        report = json.dumps(self.report, indent=1).encode()
        files = {**self.files, f"{self.name}_report.json": report}
        paths = {Path(folder, name): content for name, content in files.items()}
        there = [str(path) for path in paths if path.exists()]
        if there and not overwrite:
            raise FileExistsError(f"{there[0]} exists: give another folder, or overwrite=True")
        return [atomic_write(path, _writer(content)) for path, content in paths.items()]

    def _file(self, ending: str, option: str) -> bytes:
        name = f"{self.name}_{ending}"
        if name not in self.files:
            raise ValueError(f"{self.name} has no {ending}: call segment() with {option}")
        return self.files[name]


def _writer(content: bytes) -> Callable[[Path], object]:
    return lambda part: part.write_bytes(content)


# --- finding bundles ------------------------------------------------------------------------------


def bundle_folder(bundle: PathOrName) -> Path:
    """Return the folder of a bundle; nothing is downloaded.

    Args:
        bundle: its folder; or its name, which is looked for in ``bundles`` of the working directory, then of a checkout
            of this project, then where ``python -m monai.bundle download`` puts bundles.

    Raises:
        FileNotFoundError: there is none with an inference.json.
    """
    given = Path(bundle).expanduser()
    places = [given]
    if given.name == str(bundle):
        shelves = [Path("bundles"), Path(__file__).parents[1] / "bundles", Path(torch.hub.get_dir()) / "bundle"]
        places += [shelf / given for shelf in shelves]
    for place in places:
        if (place / "configs" / "inference.json").is_file():
            return place.resolve()
    raise FileNotFoundError(
        f"bundle {str(bundle)!r} must be a folder with configs/inference.json, or the name of one; looked for"
        f" {', '.join(str(place) for place in places)}: give its folder, or fetch it with python -m monai.bundle"
        " download"
    )


# --- running a bundle -----------------------------------------------------------------------------


class _ScanWorkflow(ConfigWorkflow):
    """A bundle's inference for one scan after the other, whose other parts are made once.

    The steps of "run" that name neither the input nor the output folder, directly or not, such as loading weights, are
    run by `prepare`; the others by `run`, for every scan.
    """

    def prepare(self) -> None:
        """Run the steps that are the same for every scan."""
        config = self.parser.get()
        steps = config["run"] if isinstance(config["run"], list) else [config["run"]]
        references = References(config)
        changes = [bool(references.of(step) & OF_A_SCAN) for step in steps]
        self.parser.update(
            {
                "for_all_scans": [step for step, of_scan in zip(steps, changes, strict=True) if not of_scan],
                "for_each_scan": [step for step, of_scan in zip(steps, changes, strict=True) if of_scan],
            }
        )
        self.run_id = "for_all_scans"
        self.run()
        self.run_id = "for_each_scan"

    def run(self) -> Any:
        """Run the current steps; MONAI leaves the bundle's folder in the search path, once for each run."""
        before = list(sys.path)
        try:
            return super().run()
        finally:
            if len(sys.path) == len(before) + 1 and sys.path[2:] == before[1:]:
                del sys.path[1]

    def turn_to(self, source: str | None, output_dir: str) -> None:
        """Set the scan and where results go; whatever was made for another scan is dropped."""
        references, resolver = References(self.parser.get()), self.parser.ref_resolver
        kept = {
            key: made
            for key, made in resolver.resolved_content.items()
            if resolver.split_id(key)[0] not in OF_A_SCAN and not references.of(self.parser.get(key)) & OF_A_SCAN
        }
        self.parser.update({"input": source, "output_dir": output_dir})
        self.parser.parse()  # forgets everything
        resolver.resolved_content.update(kept)

    def value(self, key: str) -> Any:
        """Return what a key of the configuration is made to."""
        return self.parser.get_parsed_content(key)


class _Segmenter:
    """A bundle that is loaded, for scans one after the other."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.folder, self.lock = folder, threading.Lock()
        config = folder / "configs" / "inference.json"
        if "targets" not in ConfigParser.load_config_file(config):
            raise ValueError(f"bundle {folder} does not segment: give one whose inference.json has targets")
        settings = {**options, "output_dir": tempfile.gettempdir()}  # of no scan yet; nothing is written
        self.workflow: _ScanWorkflow = create_workflow(
            workflow_name=cast(Any, _ScanWorkflow),
            config_file=str(config),
            logging_file=False,  # the log belongs to whoever calls
            workflow_type="infer",
            **settings,
        )
        self.workflow.prepare()
        weights = weights_files(self.workflow.value("checkpoint"))
        self.files = [config, folder / "configs" / "metadata.json", *map(Path, weights)]
        self.made_of = _states(self.files)

    @property
    def is_current(self) -> bool:
        """Whether its configuration and weights are still those that it was made of."""
        return _states(self.files) == self.made_of

    def __call__(self, scan: Scan) -> Segmentation:
        with self.lock, tempfile.TemporaryDirectory(prefix="mambamim_nets_") as folder:
            source, results = _source(scan, Path(folder)), Path(folder, "results")
            try:
                with _as_in_the_bundle():
                    return self._run(source, results)
            finally:
                release(results, "inference")
                self.workflow.turn_to(None, tempfile.gettempdir())

    def _run(self, source: str, results: Path) -> Segmentation:
        self.workflow.turn_to(source, str(results))
        items = self.workflow.value("dataset").data
        if len(items) != 1:
            names = ", ".join(item["name"] for item in items[:5])
            raise ValueError(
                f"{source} holds {len(items)} scans ({names}{', ...' if len(items) > 5 else ''}): give one of them to"
                " segment(), or all of them, each by its file or folder, to segment.many()"
            )
        try:
            self.workflow.run()
        except SystemExit as end:  # of `finish`; where a result alone is lacking, the warnings say so
            if self.workflow.value("dataloader").failures:
                raise RuntimeError(end.code) from None
        return _segmentation(items[0]["name"], results)


def _segmentation(name: str, folder: Path) -> Segmentation:
    """Return what a run wrote into its folder for a scan of this name, all of it in memory."""
    written = nib.Nifti1Image.from_filename(folder / f"{name}_seg.nii.gz")
    labels = nib.Nifti1Image(np.asarray(written.dataobj), written.affine, written.header)
    report = read_json(folder / "report.json")
    entry = report["scans"][name]
    values = entry["results"].items()
    volumes = {key.removesuffix(UNITS): float(value) for key, value in values if key.endswith(UNITS)}
    files = {file: (folder / file).read_bytes() for file in entry["files"]}
    (run,) = report["runs"].values()
    return Segmentation(name, labels, volumes, entry["warnings"], {**entry, "run": run}, files)


def _states(files: Iterable[Path]) -> list[tuple[int, int] | None]:
    """Return size and time of change of files; None for one that is not there."""
    found = [file.stat() if file.is_file() else None for file in files]
    return [None if at is None else (at.st_size, at.st_mtime_ns) for at in found]


def _source(scan: Scan, folder: Path) -> str:
    """Return the path of a scan; an image in memory is written into a folder first, in float32, as it would be read."""
    if isinstance(scan, str | os.PathLike):
        return str(Path(scan).expanduser())
    if isinstance(scan, MetaTensor):
        image = _nifti_of(scan)
    elif isinstance(scan, nib.spatialimages.SpatialImage):
        image = nib.Nifti1Image.from_image(scan)
        image = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine, image.header)
        image.set_data_dtype(np.float32)
    else:
        raise TypeError(
            f"scan must be a path, a nibabel image or a MetaTensor, is {type(scan).__name__}; arrays do not say where"
            " they lie: wrap them, e.g. nibabel.Nifti1Image(array, affine), and give lists to segment.many()"
        )
    path = folder / "image.nii"
    nib.save(image, path)
    return str(path)


def _nifti_of(scan: MetaTensor) -> nib.Nifti1Image:
    """Return an image in memory, (D, H, W) or (C, D, H, W), as NIfTI in float32 and RAS mm, channels last."""
    if scan.ndim not in (3, 4):
        raise ValueError(
            f"scan of shape {tuple(scan.shape)} must have the axes D, H and W, or C, D, H and W; give the images of a"
            " batch one by one"
        )
    array = scan.detach().cpu().numpy().astype(np.float32)
    if array.ndim == 4:
        array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    affine = np.asarray(scan.affine.cpu(), dtype=float)
    if str(scan.meta.get("space", "")).upper() == "LPS":
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return nib.Nifti1Image(array, affine)


# --- the call -------------------------------------------------------------------------------------


class _Segment:
    """``segment(scan)`` for one scan, ``segment.many(scans)`` for several, ``segment.forget()`` to free memory."""

    def __init__(self) -> None:
        self._loaded: dict[str, _Segmenter] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        scan: Scan,
        bundle: PathOrName = "btcv_seg",
        device: str | torch.device | None = None,
        **options: Any,
    ) -> Segmentation:
        """Segment one scan.

        Args:
            scan: path of a file or of a folder with one DICOM series, whatever ``--input`` of the bundle takes, as far
                as it holds one scan; or an image in memory: of nibabel, or a MetaTensor (D, H, W) or (C, D, H, W).
            bundle: its folder, or its name, see `bundle_folder`.
            device: of the network, such as "cuda:0"; None: the bundle's own choice.
            options: of the bundle's inference.json, such as ``overlap=0.25``, ``checkpoint="model_best.pt"`` or
                ``force=True``; see docs/BUNDLES.md.

        Returns:
            The label map on the scan's own grid, the volumes, and what else the bundle writes.

        Raises:
            FileNotFoundError: there is no such bundle or scan.
            ValueError: an option, the weights or the scan is refused; the sentence is that of the bundle.
            RuntimeError: the scan failed while it was segmented; the sentence says why.
        """
        return self._segmenter(bundle, device, options)(scan)

    def many(
        self,
        scans: Iterable[Scan],
        bundle: PathOrName = "btcv_seg",
        device: str | torch.device | None = None,
        **options: Any,
    ) -> Iterator[Segmentation]:
        """Segment scans one after the other; one that fails does not stop the others.

        Args:
            scans: each as for one call; with a generator only one is in memory at a time.
            bundle: as for one call.
            device: as for one call.
            options: as for one call.

        Returns:
            An iterator over the results, in the order of the scans and without those that failed.

        Raises:
            ValueError, FileNotFoundError: as for one call, of bundle and options, before the first scan.
            RuntimeError: after the last scan, if some failed; it names them and the reasons.
        """
        if isinstance(scans, str | os.PathLike | MetaTensor | nib.spatialimages.SpatialImage):
            raise TypeError("scans must be a list of them; give a single one to segment()")
        self._segmenter(bundle, device, options)
        return self._each(scans, bundle, device, options)

    def _each(
        self, scans: Iterable[Scan], bundle: PathOrName, device: str | torch.device | None, options: dict[str, Any]
    ) -> Iterator[Segmentation]:
        failures, number = [], 0
        for number, scan in enumerate(scans, start=1):
            try:
                result = self(scan, bundle, device, **options)
            except Exception as error:
                name = str(scan) if isinstance(scan, str | os.PathLike) else f"scan {number}"
                failures.append(f"{name}: {first_line(error)}")
                logger.error(failures[-1])
            else:
                yield result
        if failures:
            raise RuntimeError("\n".join([f"{len(failures)} of {number} scans failed:", *failures]))

    def forget(self) -> None:
        """Drop the networks that are kept, and free their memory as soon as no call uses them."""
        with self._lock:
            self._loaded.clear()

    def _segmenter(
        self, bundle: PathOrName, device: str | torch.device | None, options: Mapping[str, Any]
    ) -> _Segmenter:
        """Return a loaded bundle: one that is kept, unless its files have changed since."""
        if taken := OWN & {name.partition("#")[0] for name in options}:
            raise ValueError(
                f"option {min(taken)} is no option of segment(): the scan is its first argument, and results are saved"
                " by .save(folder)"
            )
        folder = bundle_folder(bundle)
        options = {**options, **({} if device is None else {"device": str(device)})}
        key = json.dumps([str(folder), sorted(options.items())], default=repr)
        with self._lock, _as_in_the_bundle(), _without_messages("monai.bundle.scripts", "monai.bundle.workflows"):
            if key not in self._loaded or not self._loaded[key].is_current:
                self._loaded.pop(key, None)
                self._loaded[key] = _Segmenter(folder, options)
            return self._loaded[key]


@contextlib.contextmanager
def _as_in_the_bundle() -> Iterator[None]:
    """Raise errors as the sentences that a run of the bundle ends with, without those that MONAI puts around them."""
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if cause is error:
            raise
        raise cause from None


@contextlib.contextmanager
def _without_messages(*names: str) -> Iterator[None]:
    """Silence loggers, of MONAI's lists of arguments: they are printed whatever the level of the log."""
    loggers = [logging.getLogger(name) for name in names]
    before = [one.disabled for one in loggers]
    try:
        for one in loggers:
            one.disabled = True
        yield
    finally:
        for one, disabled in zip(loggers, before, strict=True):
            one.disabled = disabled


segment = _Segment()
