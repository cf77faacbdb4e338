"""TensorBoard's files of a resumed run: rows that the run repeats are dropped, so that no step has two.

SummaryWriter's `purge_step` cannot do it: it compares the steps of all rows with one number, and the rows of a run
count epochs as well as iterations. Here a row in the log itself says where a checkpoint was written, and what came
after it goes. A file is a sequence of records: length (8 bytes), its checksum (4), an Event, its checksum (4).
"""

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["drop_rows_after"]

logger = logging.getLogger("mambamim_nets")
HEAD, TAIL = 12, 4  # bytes of a record before and after its Event


def drop_rows_after(folder: str | os.PathLike[str], tag: str, step: int) -> None:
    """Cut off the rows written after the last row of a tag at a step; without such a row nothing is changed.

    Args:
        folder: of the event files.
        tag: of the rows that mark checkpoints.
        step: of the row to end with.
    """
    files = {path: list(_rows(path)) for path in sorted(Path(folder).glob("events.out.tfevents.*"))}
    marks = [event.wall_time for rows in files.values() for _, event in rows if _is_mark(event, tag, step)]
    if not marks:
        return
    dropped = 0
    for path, rows in files.items():
        later = [offset for offset, event in rows if event.HasField("summary") and event.wall_time > max(marks)]
        if later:
            os.truncate(path, later[0])
            dropped += len(later)
    if dropped:
        logger.info("dropped %d rows of TensorBoard after step %d: the resumed run writes them again", dropped, step)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the offset and the Event of every whole record."""
    from tensorboard.compat.proto.event_pb2 import Event

    content, offset = path.read_bytes(), 0
    while offset + HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        end = offset + HEAD + length + TAIL
        if end > len(content):
            return
        try:
            event = Event.FromString(content[offset + HEAD : end - TAIL])
        except Exception:  # damaged: no reader gets beyond this record
            return
        yield offset, event
        offset = end


def _is_mark(event: Any, tag: str, step: int) -> bool:
    return event.step == step and any(row.tag == tag for row in event.summary.value)
