"""Measures the peak memory of loading the networks, in a fresh process."""

import concurrent.futures
import json
import logging
import multiprocessing
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch

from vexpress.benchmarks.measuring import PROCESS_STATUS, Table, gib, process_memory
from vexpress.benchmarks.random_networks import NETWORK_CLASSES, build_network
from vexpress.benchmarks.settings import LoadingSettings
from vexpress.devices import resolve_dtype
from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.weights import MOTION_KEY, load_networks

logger = logging.getLogger(__name__)

NUM_WEIGHTS_IN_FILES = {"released": 2.75e9, "tiny": 1e7}  # about; motion rows count twice
POLL_SECONDS = 0.005


def write_networks(model_dir: Path, size: str, dtype: torch.dtype) -> None:
    """Writes random weights in the released layout, a network at a time; motion rows are in two files, as released.

    Raises:
        InputError: the folder cannot be made, or the disk has too little space.
    """
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror}); change `model_dir`", "model_dir", model_dir) from error
    free, needed = shutil.disk_usage(model_dir).free, NUM_WEIGHTS_IN_FILES[size] * dtype.itemsize
    if free < needed:
        problem = f"{gib(free)} free, {gib(needed)} needed; point `model_dir` to more space"
        raise InputError(problem, "model_dir", model_dir)
    (model_dir / "v-express").mkdir()
    for name in NETWORK_CLASSES:
        network = build_network(name, size, dtype=dtype)
        files = {name: network.state_dict()}
        config_path = model_dir / f"{LAYOUT[f'{name}_path']}.json"
        if name == "denoising_unet":
            files["motion_module"] = {key: tensor for key, tensor in files[name].items() if MOTION_KEY in key}
            config_path = model_dir / LAYOUT["unet_config_path"]
            config_path.parent.mkdir(parents=True)
        if name != "reference_net":  # it is sized by the denoising UNet's
            config = {key: value for key, value in network.config.items() if not key.startswith("_")}
            config_path.write_text(json.dumps(config))
        for file, weights in files.items():
            path = model_dir / f"{LAYOUT[f'{file}_path']}.bin"
            logger.info("writing %s", path)
            with replacing(path) as temporary:
                torch.save(weights, temporary)


def load_and_measure(model_dir: Path) -> dict[str, float]:
    """Loads the networks as the pipeline does, in fp16 on the CPU; to be run in a process of its own.

    Returns:
        size, peak and anonymous_peak in bytes, the peaks beyond what the imports take; seconds.
    """
    baseline, anonymous_baseline = process_memory("VmRSS"), process_memory("RssAnon")
    anonymous_peak, done = anonymous_baseline, threading.Event()

    def poll() -> None:
        nonlocal anonymous_peak
        while not done.wait(POLL_SECONDS):
            anonymous_peak = max(anonymous_peak, process_memory("RssAnon"))

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        start = time.perf_counter()
        # VAE and audio encoder are not read here; any path that exists will do.
        paths = ModelPaths.from_model_dir(model_dir, vae_path=model_dir, audio_encoder_path=model_dir)
        networks = load_networks(paths, torch.float16)
        weights = [tensor for network in networks.values() for tensor in network.state_dict().values()]
        for tensor in weights:
            tensor.max()  # reads what may be mapped only, as the first use would
        seconds = time.perf_counter() - start
    finally:
        done.set()
        poller.join()
    return {
        "size": sum(tensor.nbytes for tensor in weights),
        "peak": process_memory("VmHWM") - baseline,
        "anonymous_peak": anonymous_peak - anonymous_baseline,
        "seconds": seconds,
    }


def measure(settings: LoadingSettings) -> Table:
    """Loads in a fresh process; weights are written first if there are none.

    Raises:
        InputError: this is not Linux, the folder cannot be made, or its files do not fit.
    """
    if not PROCESS_STATUS.exists():
        raise InputError(f"loading: memory is read from {PROCESS_STATUS}, which only Linux has")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        model_dir = Path(settings.model_dir or temporary)
        if not (model_dir / "v-express").exists():  # else measures what is there
            write_networks(model_dir, settings.size, resolve_dtype(settings.file_dtype))
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
            found = pool.submit(load_and_measure, model_dir).result()
        num_bytes_of_files = sum(path.stat().st_size for path in (model_dir / "v-express").iterdir())
    rows = [
        ["files", gib(num_bytes_of_files), "-"],
        ["networks in fp16", gib(found["size"]), "1.00"],
        ["peak resident memory", gib(found["peak"]), f"{found['peak'] / found['size']:.2f}"],
        ["  of it anonymous, peak", gib(found["anonymous_peak"]), f"{found['anonymous_peak'] / found['size']:.2f}"],
        ["time", f"{found['seconds']:.1f} s", "-"],
    ]
    return Table(["loading", "measured", "ratio to networks"], rows)
