"""Clips in tar shards, as WebDataset has them, and the index that says where in a shard each file is.

A clip is the members KEY.mp4, KEY.face_info.npz, KEY.audio_embeds.safetensors and KEY.json, its row of the metadata.
WebDataset streams the shards; training here reads single clips out of them by the index, in any order.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vexpress.data.arrays import readable_path
from vexpress.data.formats import (
    AUDIO_EMBEDS_SUFFIXES,
    FACE_INFO_SUFFIXES,
    NEEDED_PATH_KEYS,
    VIDEO_SUFFIXES,
    ClipRecord,
)
from vexpress.errors import InputError
from vexpress.storage import AnyPath, is_remote, writing

SHARD_KEY = "shard"
MEMBER_KEYS = tuple(f"{key}_{what}" for key in NEEDED_PATH_KEYS for what in ("offset", "size"))
MEMBER_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*")
ENDINGS = {"video": "", "face_info": ".face_info", "audio_embeds": ".audio_embeds"}
SUFFIXES = {"video": VIDEO_SUFFIXES, "face_info": FACE_INFO_SUFFIXES, "audio_embeds": AUDIO_EMBEDS_SUFFIXES}
MAX_MEMBER_BYTES = 2**31


def check_files(record: ClipRecord) -> None:
    """Checks that the files of a clip can be members of a shard, by their names and sizes.

    Raises:
        InputError: one is missing, no regular file, too large, or of a suffix that such files do not have.
    """
    for key, suffixes in SUFFIXES.items():
        path = readable_path(getattr(record, key), key, suffixes)
        if (num_bytes := path.stat().st_size) > MAX_MEMBER_BYTES:
            raise InputError(f"{key} {path}: has {num_bytes} bytes; a shard holds files of up to {MAX_MEMBER_BYTES}")


def write_shards(
    clips: Iterator[tuple[Mapping[str, Any], ClipRecord]], folder: AnyPath, max_bytes: int
) -> Iterator[dict[str, Any]]:
    """Writes clips into shards.

    Args:
        clips: rows of the metadata, and the same with paths of this machine, which `check_files` has passed.
        folder: for shard-000000.tar and so on; is there, or remote.
        max_bytes: a shard that is larger is the last clip's last.

    Yields:
        The rows of the index, whose paths are names in SHARD_KEY.
    """
    clips = enumerate(clips)
    clip = next(clips, None)
    number = 0
    while clip is not None:
        name = f"shard-{number:06}.tar"
        rows = []
        with writing(folder / name) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as shard:
            while clip is not None and (not rows or shard.offset < max_bytes):
                index, (row, record) = clip
                rows.append(_add_clip(shard, f"{index:09}", row, record) | {SHARD_KEY: name})
                clip = next(clips, None)
        yield from rows
        number += 1


def _add_clip(shard: tarfile.TarFile, key: str, row: Mapping[str, Any], record: ClipRecord) -> dict[str, Any]:
    facts = {
        name: value for name, value in row.items() if name not in (*NEEDED_PATH_KEYS, "audio", SHARD_KEY, *MEMBER_KEYS)
    }
    places: dict[str, Any] = {}
    for name in NEEDED_PATH_KEYS:
        path: Path = getattr(record, name)
        member = f"{key}{ENDINGS[name]}{path.suffix.lower()}"
        with open(path, "rb") as file:
            size = path.stat().st_size
            places |= {name: member, f"{name}_offset": _add(shard, member, file, size), f"{name}_size": size}
    names = {name: places[name] for name in NEEDED_PATH_KEYS}
    content = json.dumps(names | facts).encode()
    _add(shard, f"{key}.json", io.BytesIO(content), len(content))
    return facts | places


def _add(shard: tarfile.TarFile, name: str, file, size: int) -> int:
    """Adds a member; returns where its bytes start. Nothing of this machine or this hour is in the shard."""
    member = tarfile.TarInfo(name)
    member.size = size
    offset = shard.offset + tarfile.BLOCKSIZE  # a header is one block in this format
    shard.addfile(member, file)
    return offset


def copy_members(folder: AnyPath, row: Mapping[str, Any], target: Path, where: str) -> dict[str, str]:
    """Copies a clip's files out of its shard.

    Args:
        folder: of the shards.
        row: of the index.
        target: empty folder.
        where: names the row, for messages.

    Returns:
        Key of each file -> its name in `target`.

    Raises:
        InputError: a name, place or size that no shard of ours has.
        OSError: the shard cannot be read.
    """
    names = {key: row.get(key) for key in (SHARD_KEY, *NEEDED_PATH_KEYS)}
    for key, name in names.items():
        if not isinstance(name, str) or not MEMBER_NAME.fullmatch(name):
            raise InputError(f'{where}: "{key}" is {name!r}; needed is the name of a file')
    shard = folder / names.pop(SHARD_KEY)
    for key, name in names.items():
        offset, size = (row.get(f"{key}_{what}") for what in ("offset", "size"))
        if not all(isinstance(number, int) and number >= 0 for number in (offset, size)) or size > MAX_MEMBER_BYTES:
            raise InputError(f"{where}: {key} has no place and size in {names[key]}")
        content = _read_range(shard, offset, size)
        if len(content) != size:
            raise InputError(f"{where}: {shard} ends before its {key}; is it whole?")
        (target / name).write_bytes(content)
    return names


def _read_range(path: AnyPath, offset: int, size: int) -> bytes:
    if is_remote(path):
        return path.fs.cat_file(path.path, start=offset, end=offset + size)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
