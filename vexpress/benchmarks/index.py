"""Measures an index of many clips with made-up rows: time, file size, and memory of a process that trains with it."""

import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

from vexpress.benchmarks.measuring import Table, process_memory
from vexpress.benchmarks.settings import IndexSettings
from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.metadata_files import writing_parquet
from vexpress.data.order import epoch_order

NUM_LANGUAGES = 7
LOOKED_UP = 1000  # rows


def write_rows(path: Path, num_clips: int) -> None:
    """Writes rows as `vexpress prepare` does, of made-up clips."""
    rng = np.random.default_rng(0)
    with writing_parquet(path, {"sharpness": "number", "language": "text"}) as add:
        for number, num_frames in enumerate(rng.integers(60, 300, num_clips).tolist()):
            stem = f"clips/video_{number // 8:07}-{number * 2654435761 % 2**48:012x}/{number % 8:03}"
            add(
                {
                    "video": f"{stem}.mp4",
                    "face_info": f"{stem}.face_info.npz",
                    "audio_embeds": f"{stem}.audio_embeds.safetensors",
                    "duration": num_frames / 30,
                    "fps": 30.0,
                    "num_frames": num_frames,
                    "width": 512,
                    "height": 512,
                    "num_states": num_frames * 50 // 30,
                    "audio_dim": 768,
                    "sharpness": number % 97 / 97,
                    "language": f"language {number % NUM_LANGUAGES}",
                }
            )


def _measure_in_process(path: Path, connection) -> None:
    """Opens the index as training does; sends what it took as rows of the table."""

    def lap(what: str) -> None:
        nonlocal start
        memory = [f"{process_memory(field) / 2**20:.0f}" for field in ("VmRSS", "VmHWM")]
        connection.send([what, f"{time.perf_counter() - start:.2f}", *memory])
        start = time.perf_counter()

    start = time.perf_counter()
    lap("modules, before")
    dataset = TalkingFaceDataset(DataConfig([str(path)]), seed=0)
    lap("opening the index")
    order = epoch_order(0, 0, len(dataset))
    lap("order of an epoch")
    [index] = dataset.indexed
    for number in order[:LOOKED_UP]:
        index.name(int(number))
    lap(f"looking up {LOOKED_UP} rows of it")
    connection.close()


def measure(settings: IndexSettings) -> Table:
    """Writes the rows here, and opens them in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metadata.parquet")
        start = time.perf_counter()
        write_rows(path, settings.num_clips)
        rows = [[f"writing {settings.num_clips} rows", f"{time.perf_counter() - start:.2f}", "-", "-"]]
        rows.append([f"the file, {path.stat().st_size / 2**20:.0f} MiB", "-", "-", "-"])
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_measure_in_process, args=(path, theirs))
        process.start()
        theirs.close()
        try:
            while True:
                rows.append(ours.recv())
        except EOFError:
            process.join()
    return Table(["index", "seconds", "memory MiB", "peak memory MiB"], rows)
