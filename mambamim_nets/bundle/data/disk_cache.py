"""Prepared scans on disk: MONAI's PersistentDataset with names that say what is in a file, and files that are whole."""

import enum
import functools
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Transform
from monai.transforms.utils import convert_to_tensor

from mambamim_nets import __version__
from mambamim_nets.bundle.files import atomic_write, remove_leftovers

__all__ = ["DiskCache", "described"]

logger = logging.getLogger("mambamim_nets")
UNREAD = {"weight", "source"}  # of an item; nothing reads them from what is cached


class DiskCache(PersistentDataset):
    """A data set that keeps what its deterministic transforms make of each item in a file.

    The name of a file is a hash of the item, with size and time of change of every file that it names, and of the
    deterministic transforms with their arguments. So another spacing, another intensity range or a scan that was
    exported again has another file, and how often a source is drawn makes no difference. A file that cannot be read is
    made again.

    Args:
        data: items with file names.
        transform: what is done with them, deterministic transforms first.
        cache_dir: folder of the files.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Transform, cache_dir: str | os.PathLike[str]
    ) -> None:
        super().__init__(
            data, transform, cache_dir=Path(cache_dir), hash_func=_hash_of_item, hash_transform=_hash_of_transforms
        )
        remove_leftovers(cache_dir)

    def _cachecheck(self, item_transformed: Any) -> Any:
        name = self.hash_func(item_transformed).decode() + self.transform_hash
        path = Path(str(self.cache_dir)) / f"{name}.pt"
        if path.is_file():
            try:
                return torch.load(path, weights_only=True)
            except Exception as error:
                logger.warning(
                    "%s of the cache cannot be read (%s): made again", path, " ".join(str(error).split())[:100]
                )
        made = self._pre_transform(deepcopy(item_transformed))
        kept = convert_to_tensor(made, convert_numeric=False, track_meta=self.track_meta)
        atomic_write(path, lambda part: torch.save(kept, part))
        return kept  # not what was made: arrays of one scan and tensors of another, from the disk, form no batch


def _hash_of_item(item: Mapping[str, Any]) -> bytes:
    return _digest({key: _with_stamps(value) for key, value in item.items() if key not in UNREAD})


def _hash_of_transforms(transforms: Sequence[Transform]) -> bytes:
    return _digest([monai.__version__, __version__, *map(described, transforms)])


def _digest(content: Any) -> bytes:
    text = json.dumps(described(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def _with_stamps(value: Any) -> Any:
    """Return a value with size and time of change of the files that it names."""
    if isinstance(value, list | tuple):
        return [_with_stamps(part) for part in value]
    if isinstance(value, str | os.PathLike) and os.path.exists(value):
        files = sorted(Path(value).iterdir()) if os.path.isdir(value) else [Path(value)]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return [os.path.abspath(value), stats]
    return value


def described(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return what an object is made of in plain values: the same for equal ones, in every process.

    Objects are told by their class and attributes, functions by their name, what they enclose and, if they have no
    name, their code; arrays by their numbers. MONAI's ``pickle_hashing`` does not do: it fails on functions without a
    name, and equal objects may be pickled to different bytes.
    """
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, enum.Enum)):
        return value
    if id(value) in above:
        return "itself"
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(key): described(part, inside) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part, inside) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((described(part, inside) for part in value), key=str)
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        return ["array", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, enum.Enum | torch.dtype | torch.device | np.generic | np.dtype | os.PathLike):
        return [type(value).__name__, str(value)]
    if isinstance(value, functools.partial):
        return [described(part, inside) for part in (value.func, value.args, value.keywords)]
    if inspect.ismethod(value):
        return [value.__func__.__qualname__, described(value.__self__, inside)]
    if inspect.isfunction(value):
        code = (
            [value.__code__.co_code.hex(), list(map(str, value.__code__.co_names))] if "<" in value.__qualname__ else []
        )
        cells = [described(cell.cell_contents, inside) for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, code, described(value.__defaults__, inside), cells]
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        return getattr(value, "__qualname__", getattr(value, "__name__", type(value).__name__))
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return [kind, described(getattr(value, "__dict__", {}), inside)]
