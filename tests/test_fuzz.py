"""Fuzzing: whatever is in a header, an option or a configuration, a run is right or refused with a sentence.

The draws are the same on every machine (``derandomize``), so a failure here can be repeated. Each property is tried
twice: on a few draws in every run, and on hundreds in a run of the slow tests.
"""

import contextlib
import gzip
import io
import json
import math
import shutil
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from monai.bundle import create_workflow
from small import SMALL
from stub import Bright

from mambamim_nets import bundle as mb
from mambamim_nets.bundle import errors
from mambamim_nets.bundle.options import OPTIONS

HEADERS, RUNS, CONFIGURATIONS = 700, 300, 1000
FEW = 10  # times fewer draws, where there is little time
SHAPE = (20, 18, 16)
FIELDS = {  # of NIfTI-1: how many numbers each holds
    "sizeof_hdr": 1,
    "dim": 8,
    "datatype": 1,
    "bitpix": 1,
    "pixdim": 8,
    "vox_offset": 1,
    "scl_slope": 1,
    "scl_inter": 1,
    "xyzt_units": 1,
    "qform_code": 1,
    "sform_code": 1,
    "quatern_b": 1,
    "quatern_c": 1,
    "quatern_d": 1,
    "qoffset_x": 1,
    "srow_x": 4,
    "srow_y": 4,
    "srow_z": 4,
}
ODD = (0.0, -1.0, 1.0, 2.0, 0.5, 1e-6, 1e6, 1e30, -1e30, 3e38, math.nan, math.inf, -math.inf)
ODD_INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 255, 256, 512, 1024, 1280, 32767, -32768)
UNDERSTOOD = (ValueError, OSError, ImportError, ArithmeticError, SystemExit)  # errors whose text is written for people

CONFIGS = [
    (bundle, (*first, name))
    for bundle in sorted(SMALL)
    for first, name in (((), "train"), ((), "inference"), (("train",), "evaluate"))
    if (BUNDLES / bundle / "configs" / f"{name}.json").is_file()
]
JUNK = ("abc", "", " ", "true", "null", "@x", "@seed", "$1/0", "$None", "%x", "a/b", "../..", "~", "#", "1e400", "0x10")
VALUES = st.one_of(
    st.sampled_from(JUNK),
    st.sampled_from(ODD),
    st.sampled_from(ODD_INTEGERS),
    st.none(),
    st.booleans(),
    st.text(max_size=6),
    st.lists(st.one_of(st.sampled_from(ODD), st.integers(-2, 100), st.text(max_size=2)), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(-1, 3), max_size=2),
)
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def fuzz(cases: int) -> settings:
    """Return the settings of so many draws, the same ones in every run."""
    return settings(max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)


@st.composite
def changes(draw):
    """Draw up to three numbers of a header to change, and what becomes of the file's bytes."""
    fields = []
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=3)):
        value = draw(st.one_of(st.sampled_from(ODD), st.sampled_from(ODD_INTEGERS), st.floats(width=32)))
        fields.append((name, draw(st.integers(0, FIELDS[name] - 1)), value))
    cut = draw(st.one_of(st.just(1.0), st.just(1.0), st.just(1.0), st.floats(0, 1)))
    return fields, cut, draw(st.booleans())


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """The bytes of a small sound NIfTI file: a bright ball in a dark box with some noise."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    values = np.where((grid**2).sum(0) < 36, 900, 100) + np.random.default_rng(0).integers(0, 50, SHAPE)
    path = tmp_path_factory.mktemp("sound") / "scan.nii"
    image = nib.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 1.5, 1.0]))
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    return path.read_bytes()


def changed(sound: bytes, fields, cut: float, packed: bool) -> tuple[str, bytes]:
    """Return a file's name and its bytes with a changed header."""
    header = np.frombuffer(sound[:348], dtype=nib.nifti1.header_dtype).copy()
    for name, place, value in fields:
        with np.errstate(all="ignore"), contextlib.suppress(OverflowError, ValueError):
            numbers = np.atleast_1d(header[name][0])
            numbers[place] = value
            header[name][0] = numbers if FIELDS[name] > 1 else numbers[0]
    data = header.tobytes() + sound[348:]
    if packed:
        data = gzip.compress(data, 1)
    return ("scan.nii.gz" if packed else "scan.nii"), data[: int(cut * len(data))]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check_scan(sound, place, change):
    """Assert that a scan with a changed header is read as finite voxels of a sane size, or refused with a sentence."""
    folder = place / "in"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name, data = changed(sound, *change)
    (folder / name).write_bytes(data)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            (item,) = mb.scans(str(folder / name), str(place / "out"))
        except UNDERSTOOD as error:
            assert str(error).strip()
            return
        scan = mb.LoadScand("image")(item)["image"]
    assert torch.isfinite(scan).all()
    assert scan.ndim == 4 and scan.numel()
    spacing = np.linalg.norm(np.asarray(scan.affine)[:3, :3], axis=0)
    assert (spacing >= 0.01 - 1e-6).all() and (spacing <= 50 + 1e-3).all(), spacing


@fuzz(HEADERS // FEW)
@given(change=changes())
@example(change=([("pixdim", 1, 0.0)], 1.0, False))
@example(change=([("sform_code", 0, 0), ("qform_code", 0, 0)], 1.0, False))
def test_a_scan_with_one_of_some_headers_is_finite_or_refused(sound, place, change):
    check_scan(sound, place, change)


@pytest.mark.slow
@fuzz(HEADERS)
@given(change=changes())
def test_a_scan_with_any_header_is_finite_or_refused(sound, place, change):
    check_scan(sound, place, change)


def check_run(sound, place, bundle_run, change):
    """Assert that a run on a scan with a changed header writes a label map, or ends with a sentence and without one."""
    weights = place / "bright.pt"
    if not weights.is_file():
        torch.save(Bright().state_dict(), weights)
    for name in ("in", "results"):
        shutil.rmtree(place / name, ignore_errors=True)
    (place / "in").mkdir()
    name, data = changed(sound, *change)
    (place / "in" / name).write_bytes(data)
    end = bundle_run(
        "msd_seg",
        "inference",
        input=str(place / "in" / name),
        output_dir=str(place / "results"),
        checkpoint=str(weights),
        network_def={"_target_": "stub.Bright"},
        previews=False,
    )
    label_map = place / "results" / "scan_seg.nii.gz"
    if end.status == 0:
        values = np.asarray(nib.load(label_map).dataobj)
        assert values.any(), f"empty result and exit status 0: {change}\n{end.log[-2000:]}"
    else:
        assert end.last.strip() and "Failed to evaluate" not in end.last and "Traceback" not in end.log, end.log[-3000:]
        assert not label_map.exists(), f"a refused run left a result: {change}\n{end.log[-2000:]}"


@fuzz(RUNS // FEW)
@given(change=changes())
def test_a_run_on_one_of_some_headers_gives_a_label_map_or_a_sentence(sound, place, bundle_run, change):
    check_run(sound, place, bundle_run, change)


@pytest.mark.slow
@fuzz(RUNS)
@given(change=changes())
def test_a_run_on_any_header_gives_a_label_map_or_a_sentence(sound, place, bundle_run, change):
    check_run(sound, place, bundle_run, change)


# --- options and configurations -------------------------------------------------------------------


def keys_of(content, prefix: str = "") -> list[str]:
    """Return the ids of everything in a configuration, as the command line names them."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = []
    for key, value in items:
        name = f"{prefix}{key}"
        found += [name, *keys_of(value, f"{name}#")]
    return found


@st.composite
def overrides(draw):
    """Draw a configuration and up to three options for it: known, nested, misspelt or unknown, with any value."""
    bundle, names = draw(st.sampled_from(CONFIGS))
    contents = [json.loads((BUNDLES / bundle / "configs" / f"{name}.json").read_text()) for name in names]
    top = sorted({key.split("#")[0] for content in contents for key in content} & set(OPTIONS) - {"output_dir"})
    names_below = {key for content in contents for key in keys_of(content) if "#" in key and "handlers" not in key}
    nested = sorted(key for key in names_below if not key.startswith("imports#"))  # without them none of our code runs
    chosen = {}
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.one_of(st.sampled_from(top), st.sampled_from(top), st.sampled_from(nested)))
        if draw(st.integers(0, 5)) == 0:  # a slip of the finger
            at = draw(st.integers(0, len(key)))
            key = key[:at] + draw(st.sampled_from("xe_1")) + key[at:]
        chosen[key] = draw(VALUES)
    return bundle, names, chosen


def check_options(place, drawn):
    """Assert that a configuration takes drawn options, each within its rule, or refuses them by name."""
    bundle, names, options = drawn
    files = [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in names]
    given_options = {"output_dir": str(place / "options"), **options}
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        mock.patch.object(errors, "install") as started,
    ):
        try:
            workflow = create_workflow(config_file=files, logging_file=False, workflow_type="train", **given_options)
        except Exception as error:
            if not started.called:  # MONAI's own words for a path into nothing, before any code of ours can run
                assert isinstance(error, KeyError | IndexError | ValueError), f"{options}: {error!r}"
                return
            words = errors.sentence_of(error)
            assert isinstance(errors.cause_of(error), UNDERSTOOD), f"{options}: {error!r}: {words}"
            named = [key for key in options if key.split("#")[0] in words]
            assert named or bundle in words, f"{options} refused without a name: {words}"
            return
    for name in set(options) & set(OPTIONS):
        value, rule = workflow.parser.get_parsed_content(name), OPTIONS[name]
        assert (value is None and rule.null) or rule.convert(value) == value, f"{options}: --{name} {value!r}"


@fuzz(CONFIGURATIONS // FEW)
@given(drawn=overrides())
def test_one_of_some_options_is_within_its_rule_or_refused_by_name(place, drawn):
    check_options(place, drawn)


@pytest.mark.slow
@fuzz(CONFIGURATIONS)
@given(drawn=overrides())
def test_any_option_is_within_its_rule_or_refused_by_name(place, drawn):
    check_options(place, drawn)
