"""Keep what the bundles share identical: the bodies of the segmentation configurations, logging.conf and LICENSE.

A segmentation bundle's train.json and inference.json consist of a task block, which belongs to the bundle, and a body,
from the key "body" on, which is the same everywhere, as are its other configurations and configs/networks. The text is
copied, not the parsed JSON, so formatting survives.

    python .ci/sync_bundles.py            copy from the source bundle (btcv_seg, or msd_seg where that is missing)
    python .ci/sync_bundles.py --check    change nothing; list the files that differ and exit with 1
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("btcv_seg", "msd_seg")
BODIES = ("train.json", "inference.json")
WHOLE = (
    "evaluate.json",
    "promote.json",
    "inference_trt.json",
    "multi_gpu_train.json",
    "multi_gpu_evaluate.json",
    "disk_cache.json",
)
WHERE_PRESENT = ("starter.json",)
_BODY = re.compile(r'^ *"body" *:', re.MULTILINE)


def split_config(path: Path) -> tuple[str, str]:
    """Return the text of a configuration before and from the line of its key "body".

    Raises:
        ValueError: if the file does not have exactly one such line.
    """
    text = path.read_text(encoding="utf-8")
    lines = list(_BODY.finditer(text))
    if len(lines) != 1:
        raise ValueError(f'{path} must have exactly one line with the key "body", has {len(lines)}')
    return text[: lines[0].start()], text[lines[0].start() :]


def shared_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every shared file of every bundle with the text it should have."""
    bundles = sorted(folder for folder in (root / "bundles").iterdir() if (folder / "configs").is_dir())
    segmentation = [
        bundle
        for bundle in bundles
        if bundle.name.endswith("_seg") and not (bundle / "configs" / "plan.json").is_file()  # plans have own values
    ]
    source = next((root / "bundles" / name for name in SOURCES if (root / "bundles" / name / "configs").is_dir()), None)
    if source is None:
        raise FileNotFoundError(f"{root / 'bundles'} must have one of {', '.join(SOURCES)}, the source of the bodies")
    licence = (root / "LICENSE").read_text(encoding="utf-8")
    logging = (source / "configs" / "logging.conf").read_text(encoding="utf-8")
    for bundle in bundles:
        yield bundle / "LICENSE", licence
        yield bundle / "configs" / "logging.conf", logging
    for name in BODIES:
        if (source / "configs" / name).is_file():
            body = split_config(source / "configs" / name)[1]
            for bundle in segmentation:
                yield bundle / "configs" / name, split_config(bundle / "configs" / name)[0] + body
    networks = sorted((source / "configs" / "networks").glob("*.json"))
    for name in (*WHOLE, *(f"networks/{path.name}" for path in networks)):
        if (source / "configs" / name).is_file():
            text = (source / "configs" / name).read_text(encoding="utf-8")
            for bundle in segmentation:
                yield bundle / "configs" / name, text
    for name in WHERE_PRESENT:
        for bundle in segmentation:
            if (bundle / "configs" / name).is_file() and (source / "configs" / name).is_file():
                yield bundle / "configs" / name, (source / "configs" / name).read_text(encoding="utf-8")


def main() -> int:
    """Copy, or with --check compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Keep what the bundles share identical.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file differs")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    arguments = parser.parse_args()
    differing = [
        (path, text)
        for path, text in shared_files(arguments.root)
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in differing:
        print("differs:" if arguments.check else "written:", path.relative_to(arguments.root))
        if not arguments.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if arguments.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
