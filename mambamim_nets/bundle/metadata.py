"""Names of structures, classes and points: a bundle's ``configs/metadata.json`` is the one place where they stand."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["label_table", "metadata_entry", "region_table"]

METADATA = Path("configs", "metadata.json")


def metadata_entry(bundle_root: str | os.PathLike[str], key: str) -> Any:
    """Return what a bundle's metadata says of its result under a key, e.g. ``label_def``, ``lengths`` or ``classes``.

    Looked up are ``pred`` of ``post_processed_outputs``, then ``pred`` of ``outputs`` in ``network_data_format``.

    Args:
        bundle_root: folder of the bundle.
        key: name of the entry.

    Raises:
        ValueError: the metadata is not there, is no JSON, or has no such entry.
    """
    path = Path(bundle_root, METADATA)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["network_data_format"]
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} must be there: it names what the bundle finds; copy it with the bundle, or give --bundle_root"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be JSON with network_data_format: {error!r}; correct it") from error
    for part in ("post_processed_outputs", "outputs"):
        pred = data.get(part, {}).get("pred", {})
        if key in pred:
            return pred[key]
    raise ValueError(
        f"{path} must have {key!r} in network_data_format, in pred of post_processed_outputs or of outputs; add it"
    )


def label_table(
    bundle_root: str | os.PathLike[str], changed: Mapping[str, int | str] | None = None
) -> dict[str, int | str]:
    """Return name -> label value of a bundle's structures, background left out, from ``label_def`` of its metadata.

    Args:
        bundle_root: folder of the bundle.
        changed: name -> value of structures that have another value in this run.

    Raises:
        ValueError: as in `metadata_entry`; a name or value stands twice, a value is no whole number, or ``changed``
            names what is not there.
    """
    defined = metadata_entry(bundle_root, "label_def")
    path = Path(bundle_root, METADATA)
    if not isinstance(defined, Mapping) or not all(str(value).isdecimal() for value in defined):
        raise ValueError(f'label_def in {path} must be a table {{"1": "name", ...}}, is {defined!r}; correct it')
    table: dict[str, int | str] = {name: int(value) for value, name in defined.items() if int(value) != 0}
    if len(table) != len([value for value in defined if int(value) != 0]):
        raise ValueError(f"label_def in {path} must have different names, has {list(defined.values())}; rename one")
    unknown = set(changed or {}) - set(table)
    if unknown:
        raise ValueError(f"label_def in {path} has no {', '.join(sorted(unknown))}; it has {', '.join(table)}")
    return table | dict(changed or {})


def region_table(bundle_root: str | os.PathLike[str], labels: Mapping[str, int]) -> dict[str, list[int]]:
    """Return name -> label values of a bundle's overlapping regions, from ``regions`` of its metadata.

    There a region is a list of structures, in the order of the network's channels.

    Args:
        bundle_root: folder of the bundle.
        labels: name -> label value of the structures.

    Raises:
        ValueError: as in `metadata_entry`, or a region has a structure that ``labels`` does not have.
    """
    regions = metadata_entry(bundle_root, "regions")
    for region, names in regions.items():
        unknown = [name for name in names if name not in labels]
        if unknown:
            raise ValueError(
                f"region {region!r} in {Path(bundle_root, METADATA)} must consist of {', '.join(labels)}, "
                f"not of {', '.join(unknown)}; correct it"
            )
    return {region: [labels[name] for name in names] for region, names in regions.items()}
