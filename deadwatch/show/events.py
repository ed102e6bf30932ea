"""Event files → runs, found and read as TensorBoard does it, without TensorBoard's server.

Only records of deadwatch's are kept. A file that is damaged or cut short, say because its run was
killed or is still writing, is read as far as it goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.io_wrapper import (
    GetLogdirSubdirectories,
    IsTensorFlowEventsFile,
)
from tensorboard.compat.proto.event_pb2 import Event

from deadwatch.errors import DeadwatchError
from deadwatch.show.archive import COUNTS, PLUGIN
from deadwatch.show.run import Record, Run

FRAME = 16
"""Bytes around each event in a file: its length and two checksums."""


@dataclass(frozen=True, eq=False)
class Found:
    """A run in a directory of event files.

    Attributes:
        run: The run.
        cut: Names of the files that end, or are damaged, within an event.
    """

    run: Run
    cut: tuple[str, ...]


def runs(logdir: Path) -> dict[str, Found]:
    """All runs below a directory that hold records of deadwatch's, by name.

    A run is a directory with event files; its name is its path below ``logdir``.

    Raises:
        DeadwatchError: There is no such directory, or nothing in it that deadwatch wrote.
    """
    if not logdir.is_dir():
        what = "is a file" if logdir.exists() else "does not exist"
        raise DeadwatchError(
            f"{logdir} {what}; expected the directory that TensorBoard's --logdir would get"
        )
    try:
        folders = sorted(map(Path, GetLogdirSubdirectories(str(logdir))))
    except UnicodeEncodeError as error:
        raise DeadwatchError(
            f"{error.object!a} is a name that is no UTF-8, at which TensorBoard stops reading "
            f"{logdir}; rename it"
        ) from error
    read = {str(folder.relative_to(logdir)): _read(folder) for folder in folders}
    found = {name: Found(Run(_by_tag(tags)), cut) for name, (tags, cut) in read.items() if tags}
    if not found:
        raise DeadwatchError(_nothing(logdir, len(folders)))
    return found


def _nothing(logdir: Path, folders: int) -> str:
    if not folders:
        return f"{logdir} holds no event files; expected the directory of a TensorBoard run"
    return (
        f"{logdir} holds {folders} directories of runs, and none has records of deadwatch's. They "
        "are written by deadwatch.TensorBoardView(SummaryWriter(…)), called with each report, and "
        "by deadwatch.DeadWatch() where the Trainer's logger is TensorBoard's"
    )


Tags = dict[str, list[Record]]


def _by_tag(tags: Tags) -> Any:
    return lambda name: tags.get(name, [])


def _read(folder: Path) -> tuple[Tags, tuple[str, ...]]:
    """The records of a run by tag, and its files that could not be read to the end."""
    tags: Tags = defaultdict(list)
    ours: set[str] = set()  # a tag may say only once whose it is
    cut = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and IsTensorFlowEventsFile(str(path)):
            whole = _read_file(path, tags, ours)
            cut += [] if whole else [path.name]
    return (dict(tags) if COUNTS in tags else {}), tuple(cut)


def _read_file(path: Path, tags: Tags, ours: set[str]) -> bool:
    """Add the records of a file; whether it could be read to its end."""
    size, length = path.stat().st_size, 0
    try:
        for data in RawEventFileLoader(str(path)).Load():
            length += FRAME + len(data)
            for tag, record in _records(data, ours):
                tags[tag].append(record)
    except (OSError, OverflowError, MemoryError, DecodeError):
        return False
    return length >= size


def _records(raw: bytes, ours: set[str]) -> Iterator[tuple[str, Record]]:
    if PLUGIN.encode() not in raw:  # pictures, histograms: not worth a closer look
        return
    event = Event.FromString(raw)
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == PLUGIN:
            ours.add(value.tag)
        if value.tag in ours and value.HasField("tensor"):
            strings = value.tensor.string_val
            data = strings[0] if len(strings) == 1 else b""  # which is no record
            yield value.tag, Record(event.wall_time, data)
