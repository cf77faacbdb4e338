"""Pack every bundle into dist/<name>_v<version>.zip, byte for byte the same from the same files, and sum them up.

An archive holds configs, models, docs and LICENSE under the bundle's name, in sorted order and with one fixed time.
A bundle whose version has no changelog entry in metadata.json is refused, and one that `mambamim_nets.plan` made while
its data licence or authors are still to be filled in. dist/SHA256SUMS is in the format that
`sha256sum --check` reads.
"""

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path

PARTS = ("configs", "models", "docs", "LICENSE")
TO_FILL_IN = "FILL IN"  # as mambamim_nets.plan.writer writes it
TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that the format can say


def version_of(bundle: Path) -> str:
    """Return the version of a bundle.

    Raises:
        ValueError: if metadata.json is missing, names no version, or has no changelog entry for it.
    """
    path = bundle / "configs" / "metadata.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; a bundle without metadata is not packaged")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    version = metadata.get("version")
    if not version or not metadata.get("changelog", {}).get(version):
        raise ValueError(f"{path}: version {version!r} must have an entry in changelog; say there what changed")
    return version


def files_of(bundle: Path) -> list[Path]:
    """List what belongs into the archive, sorted; hidden files and compiled Python stay out."""
    found = []
    for part in PARTS:
        path = bundle / part
        found += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    inside = {file: file.relative_to(bundle).parts for file in found}
    hidden = (".", "__pycache__", "model_until_")  # the last: weights that a user's own replaced
    kept = [file for file in found if not any(p.startswith(hidden) for p in inside[file])]
    return sorted(kept, key=lambda file: file.relative_to(bundle).as_posix())


def check_filled_in(bundle: Path) -> None:
    """Refuse a bundle that does not say what only its maker knows.

    Raises:
        ValueError: that names the file.
    """
    for path in (bundle / "docs" / "data_license.txt", bundle / "configs" / "metadata.json"):
        if path.is_file() and TO_FILL_IN in path.read_text(encoding="utf-8"):
            raise ValueError(f"{path} still has {TO_FILL_IN!r}; write there what is asked for, then package again")


def package(bundle: Path, output: Path) -> Path:
    """Write the archive of a bundle and return its path."""
    target = output / f"{bundle.name}_v{version_of(bundle)}.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for file in files_of(bundle):
            entry = zipfile.ZipInfo(f"{bundle.name}/{file.relative_to(bundle).as_posix()}", TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it is packed
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, file.read_bytes(), compresslevel=9)
    return target


def main() -> int:
    """Pack all bundles; return the exit code."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Pack every bundle into a reproducible archive.")
    parser.add_argument("--bundles", type=Path, default=root / "bundles", help="folder of the bundles")
    parser.add_argument("--output", type=Path, default=root / "dist", help="where the archives go")
    arguments = parser.parse_args()
    bundles = sorted(folder for folder in arguments.bundles.iterdir() if (folder / "configs").is_dir())
    try:
        for bundle in bundles:
            version_of(bundle)  # refuse before anything is written
            check_filled_in(bundle)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    archives = [package(bundle, arguments.output) for bundle in bundles]
    sums = [f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n" for archive in archives]
    (arguments.output / "SHA256SUMS").write_text("".join(sums), encoding="utf-8", newline="\n")
    print("".join(f"{archive} {archive.stat().st_size / 2**20:.1f} MiB\n" for archive in archives), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
