"""Many videos to one data set: each process its share, what is done is kept, and no file is ever half-written.

A later run gives the metadata that a first one would give of the sources and facts that are there now.

output_dir/
    settings.json                        what the clips were made with
    clips/NAME-HASH/                     one folder per source, renamed into place when all in it is complete
        record.json                      its clips and what was rejected
        000.mp4, 000.face_info.npz, 000.audio_embeds.safetensors, ...
    metadata.json, rejected.jsonl        merged from the records of all sources that are there
    .prepare.lock                        held while a preparation runs
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vexpress.devices import resolve_device
from vexpress.errors import InputError
from vexpress.files import hash_file, remove_leftovers, sync, temporary_path
from vexpress.media.faces import find_model_dir
from vexpress.prepare.extract import find_videos
from vexpress.prepare.facts import read_facts, with_facts
from vexpress.prepare.lock import hold_folder
from vexpress.prepare.records import (
    RECORD_NAME,
    clip_files,
    log_withdrawn,
    merge_records,
    read_record,
    record_paths,
    write_json,
)
from vexpress.prepare.runner import LOCAL, Runner
from vexpress.prepare.settings import PrepareSettings
from vexpress.prepare.source import MODEL_FIELDS, PrepareModels, prepare_source
from vexpress.prepare.workers import SourceFailed
from vexpress.storage import AnyPath, check_reachable, is_remote, local_copy, put_folder, read_json, remove

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What any process needs to prepare one source after another.

    Attributes:
        input_dir: sources lie in it, at any depth.
        output_dir: see the module's description.
        settings: how to make clips.
        insightface_model_path: folder of the face models.
        audio_encoder_path: folder of the audio encoder.
        syncnet_path: file of a SyncNet; None leaves out whether lips and sound fit.
        device: a torch device; None takes what the machine has that loads the models.
    """

    input_dir: AnyPath
    output_dir: AnyPath
    settings: PrepareSettings
    insightface_model_path: Path
    audio_encoder_path: Path
    syncnet_path: Path | None = None
    device: str | None = "cpu"

    @property
    def clips_dir(self) -> AnyPath:
        return self.output_dir / "clips"

    def load_models(self) -> PrepareModels:
        """Loads what `prepare` runs; raises an InputError if that fails."""
        device = self.device or str(resolve_device())
        return PrepareModels.load(self.insightface_model_path, self.audio_encoder_path, device, self.syncnet_path)

    def name_of(self, source: AnyPath) -> str:
        """Path of a source in the input folder."""
        return str(source.relative_to(self.input_dir))

    def folder_of(self, source: AnyPath) -> AnyPath:
        """Where the clips of a source go: a name that is valid everywhere, and different for each path."""
        relative = os.fsencode(self.name_of(source))
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", source.stem)[:40]
        return self.clips_dir / f"{stem}-{hashlib.sha256(relative).hexdigest()[:12]}"

    def keep(self, source: AnyPath, sha256: str | None = None) -> bool:
        """Keeps what was made of a source, with the facts that are beside it now, if nothing else changed since.

        Args:
            source: in `input_dir`.
            sha256: of the source; without it, one that is newer than its record is taken for another.

        Returns:
            False if the source must be prepared: it never was, it changed, or clips are missing; and after an
            unexpected error.
        """
        folder = self.folder_of(source)
        path, (num_bytes, _) = folder / RECORD_NAME, _state(source)
        record = read_record(path)
        if record is None or record["failed"] or record.get("num_bytes") != num_bytes:
            return False
        known = record.get("sha256")  # earlier versions have none: they went by the size
        is_newer = known is not None and 0 < path.stat().st_mtime < _changed_at(source)
        if known is not None and (is_newer if sha256 is None else sha256 != known):
            return False
        # In a store, a record comes after all else.
        if not is_remote(folder) and not all(file.is_file() for file in clip_files(record, folder)):
            return False
        facts = read_facts(source)
        clips = [with_facts(row, facts) for row in record["clips"]]
        if is_newer or json.dumps(clips) != json.dumps(record["clips"]):
            write_json(path, record | {"clips": clips})
        return True

    def prepare(self, source: Path, models: PrepareModels, on_clip=lambda: None) -> None:
        """Makes a source's folder of clips; whatever is wrong with the source is recorded there.

        Args:
            source: in `input_dir`.
            models: from `load_models`.
            on_clip: called after each clip that is made.

        Raises:
            InputError: a model cannot be used.
            OSError: the disk is full.
        """
        try:
            self.attempt(source, models, on_clip)
        except SourceFailed as error:
            logger.error("%s: failed, and will be tried again by the next run (%s)", source, error)
            logger.debug("%s", source, exc_info=True)
            self.record_failure(source, str(error))

    def attempt(self, source: Path, models: PrepareModels, on_clip=lambda: None) -> None:
        """As `prepare`, but an unexpected error is raised, so that another worker may try.

        Raises:
            SourceFailed: see above; nothing is left of the attempt.
        """
        folder = self.folder_of(source)
        try:
            state = _state(source)
            with local_copy(source) as local:
                sha256 = hash_file(local) if local.is_file() else None
                if self.keep(source, sha256):  # a copy, or done by a worker that ended before it could say so
                    return
                with self._making(folder) as unfinished:
                    result = prepare_source(local, unfinished, self.settings, models, on_clip)
                    facts = read_facts(source)
                    result["clips"] = [with_facts(row, facts) for row in result["clips"]]
                    for row in result["rejected"]:
                        row["detail"] = row["detail"].replace(str(local), str(source))
                    if _state(source) != state:
                        raise OSError("it changed while it was prepared")
                    about = {"source": self.name_of(source), "num_bytes": state[0], "sha256": sha256, "failed": False}
                    write_json(unfinished / RECORD_NAME, about | result)
        except Exception as error:  # whatever a strange file makes the libraries raise must not stop the others
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, error.strerror, str(folder)) from error  # the other name goes
            if isinstance(error, InputError) and error.field in MODEL_FIELDS:  # no source would do better
                raise
            raise SourceFailed(f"{type(error).__name__}: {error}") from error

    def record_failure(self, source: AnyPath, detail: str) -> None:
        """Records that a source failed for no known reason; the next run tries it again."""
        rejected = [{"clip": None, "reason": "failed", "detail": " ".join(detail.split())}]
        with self._making(self.folder_of(source)) as unfinished:
            about = {"source": self.name_of(source), "failed": True}
            write_json(unfinished / RECORD_NAME, about | {"clips": [], "rejected": rejected})

    @contextlib.contextmanager
    def _making(self, folder: AnyPath) -> Iterator[Path]:
        """Gives an empty folder on this machine, whose files take the place of `folder` and all in it at the end."""
        if is_remote(folder):
            with tempfile.TemporaryDirectory(prefix="vexpress-") as unfinished:
                yield Path(unfinished)
                put_folder(Path(unfinished), folder, last=RECORD_NAME)
            return
        unfinished = temporary_path(folder)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            remove(folder)  # of an older version of the source
            unfinished.rename(folder)
            sync(self.clips_dir)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def remove_unfinished(self) -> None:
        """Removes the folders that some process, on any machine, began and has not finished."""
        if not is_remote(self.output_dir):  # a store has none
            for unfinished in self.clips_dir.glob(".*.part"):
                remove(unfinished)


def _state(source: AnyPath) -> tuple[int | None, float | None]:
    """Size and time of a file; None of what is none."""
    if not source.is_file():
        return None, None
    status = source.stat()
    return status.st_size, status.st_mtime


def _changed_at(source: AnyPath) -> float:
    """When a file was written or got its name, which its own time may hide; 0 where a store does not tell."""
    if is_remote(source):
        return source.stat().st_mtime
    return max(source.stat().st_ctime, source.lstat().st_ctime)


def describe(preparation: Preparation) -> dict[str, object]:
    """All that decides how clips look: settings, sources, and the files of the models.

    Raises:
        InputError: a model's folder is not there.
    """
    if not preparation.audio_encoder_path.is_dir():
        raise InputError("no such folder", "audio_encoder_path", preparation.audio_encoder_path)
    model_dirs = (find_model_dir(preparation.insightface_model_path), preparation.audio_encoder_path)
    files = sorted((file.name, file.stat().st_size) for folder in model_dirs for file in folder.iterdir())
    if path := preparation.syncnet_path:
        if not path.is_file():
            raise InputError("no such file", "syncnet_path", path)
        files.append((path.name, path.stat().st_size))
    return {
        "input_dir": str(preparation.input_dir.resolve()),
        **dataclasses.asdict(preparation.settings),
        "models": hashlib.sha256(repr(files).encode()).hexdigest()[:12],
    }


def check_settings(output_dir: AnyPath, settings: dict[str, object]) -> None:
    """Writes down what the clips of a folder are made with, or compares with what stands there.

    Raises:
        InputError: it holds clips that were made with other flags, models or sources, or nobody knows with which.
    """
    path = output_dir / "settings.json"
    if not path.exists() or next(record_paths(output_dir), None) is None:
        remove(path)
        write_json(path, settings)
        return
    try:
        before = read_json(path)
        if not isinstance(before, dict):
            raise ValueError("is no JSON object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged, so that nobody knows what its clips were made with; give another `output_dir`, or "
            "delete this one",
            "output_dir",
            output_dir,
        ) from error
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        then, now = (", ".join(f"{name} {values.get(name)}" for name in changed) for values in (before, settings))
        raise InputError(
            f"its clips were made with {then}, and this run has {now}; give another "
            "`output_dir`, or what it was made with",
            "output_dir",
            output_dir,
        )


def prepare_folder(
    preparation: Preparation, rank: int = 0, world_size: int = 1, runner: Runner = LOCAL
) -> tuple[int, Counter]:
    """Prepares this process's share of the sources that are not done, and merges the records of all that are there.

    Args:
        preparation: folders, settings, models.
        rank: of this process among `world_size` that were launched; each takes other sources. Only rank 0 shows a bar.
        world_size: number of launched processes, on all machines.
        runner: where the work is done.

    Returns:
        Number of clips in the data set, and number of rejections by reason.

    Raises:
        InputError: no sources, other settings than before, models that cannot be loaded, or another preparation works
            on the folder.
        OSError: the disk is full.
    """
    for name in ("input_dir", "output_dir"):
        check_reachable(getattr(preparation, name), name)
    sources = find_videos(preparation.input_dir, leave_out=preparation.output_dir)
    folders = {preparation.folder_of(source).name for source in sources}
    settings = describe(preparation)
    if not is_remote(preparation.output_dir):
        try:
            preparation.clips_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot be made ({error.strerror}); change `output_dir`"
            raise InputError(problem, "output_dir", preparation.output_dir) from error
    with hold_folder(preparation.output_dir, world_size) as lock:
        if lock.is_first:
            preparation.remove_unfinished()  # of runs that were killed
        check_settings(preparation.output_dir, settings)
        lock.share()
        sources = [source for source in sources[rank::world_size] if not preparation.keep(source)]
        if sources:
            if preparation.syncnet_path is None:
                logger.warning("without a SyncNet nobody checks that sound and lips fit; give `syncnet_path`")
            _run(preparation, sources, runner, shows_bar=rank == 0)
        if rank == 0:
            log_withdrawn(preparation.output_dir, folders)
        return merge_records(preparation.output_dir, preparation.settings.max_duplicate_difference, folders)


def _run(preparation: Preparation, sources: list[Path], runner: Runner, shows_bar: bool) -> None:
    with tqdm(total=len(sources), desc="prepare", unit="video", disable=not shows_bar) as bar:
        num_clips = itertools.count(1)

        def show(event: str) -> None:
            if event == "source":
                bar.update()
            else:
                number = next(num_clips)
                clips_per_second = number / max(bar.format_dict["elapsed"], 1e-3)
                bar.set_postfix_str(f"{number} clips, {clips_per_second:.2f} clips/s")

        try:
            runner.run(preparation, sources, show)
        finally:
            if runner.name == "ray":
                preparation.remove_unfinished()  # of workers that were ended, on any machine
            elif not is_remote(preparation.output_dir):
                remove_leftovers(preparation.clips_dir)
