"""Each reader of files ends in a right result or an InputError, whatever it is given.

`python -m pytest tests/fuzz --fuzz_examples 5000` looks longer. Examples are seeded, so that a run can be repeated.
"""

import contextlib
import io
import json
import logging
import signal
import warnings
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import clips
from tests.fuzz.mutations import DEEP, altered, arrays, dumps, mutated
from vexpress.data.formats import load_audio_embeds, load_face_info, load_metadata, save_face_info
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.media.images import load_image
from vexpress.media.keypoints import KpsSequence, load_kps, save_kps
from vexpress.media.random_access import count_frames, read_frames_at
from vexpress.media.video import probe_video, read_frames
from vexpress.model_folder import read_config
from vexpress.options import load_model_defaults
from vexpress.prepare.records import read_record
from vexpress.training.checkpoints import read_progress
from vexpress.training.config_file import load_config
from vexpress.training.run_log import RunLog
from vexpress.weights import load_weights, read_state_dict

LONGEST_SECONDS = 30  # of one file; a reader that hangs is stopped


def fuzz(function: Callable) -> Callable:
    """hypothesis, seeded, as many examples as `--fuzz_examples` says."""

    def configure(request_examples: int) -> Callable:
        return settings(
            max_examples=request_examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(function)

    return configure


@contextlib.contextmanager
def limited():
    """Stops a reader that hangs, and keeps it quiet."""

    def stop(number, frame):
        raise AssertionError(f"no end after {LONGEST_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_SECONDS)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def read(reader: Callable[[Path], object], path: Path) -> object | None:
    """What a reader makes of a file; None where it says in one line what is wrong."""
    with limited():
        try:
            return reader(path)
        except InputError as error:
            line = str(error)
            assert line, "an error without words"
            assert "\n" not in line
            assert len(line) < 8000, line[:300]
            assert path.name in line or not error.field or error.value is not None, line
            return None


# ---- files as bytes --------------------------------------------------------------------------------------------------


def wav(seconds: float = 0.3, channels: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.sin(np.arange(int(8000 * seconds) * channels)) * 20000).astype("<i2").tobytes())
    return buffer.getvalue()


def encoded_audio(container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=48000, layout="mono")
        for start in range(0, 9600, 960):
            samples = np.sin(np.arange(start, start + 960) / 10)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def picture(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    image.save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    return buffer.getvalue()


def saved(save: Callable[[Path], object], suffix: str) -> Callable[[Path], bytes]:
    def build(folder: Path) -> bytes:
        save(folder / f"seed{suffix}")
        return (folder / f"seed{suffix}").read_bytes()

    return build


def save_tensors(path: Path) -> None:
    tensors = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)


def load_layer(path: Path) -> torch.nn.Module:
    with torch.device("meta"):
        network = torch.nn.Linear(2, 3)
    loaded = load_weights(network, [path], torch.float32)
    assert loaded.weight.isfinite().all()
    return loaded


def save_video(path: Path) -> None:
    frames = [clips.make_frame(i, 32) for i in range(6)]
    clips.encode_video(path, frames)


def read_video(path: Path) -> None:
    probe_video(path)
    for seconds, frame in read_frames(path):
        assert frame.dtype == np.uint8
        assert np.isfinite(seconds)
    read_frames_at(path, [0, count_frames(path) - 1])


def read_sound(path: Path) -> None:
    audio = load_audio(path)
    assert np.isfinite(audio.samples).all()
    assert audio.samples.shape[0] < 100
    mono = audio.resampled_mono()
    assert mono.isfinite().all()


def read_kps(path: Path) -> None:
    sequence = load_kps(path)
    assert sequence.kps.shape[1:] == (3, 2)
    assert sequence.kps.isfinite().all()


def read_picture(path: Path) -> None:
    image = load_image(path)
    assert image.mode == "RGB"


KPS = KpsSequence(torch.rand(5, 3, 2) * 60, 25.0, 64, 64)
STATES = {"global_embeds": torch.rand(9, 1, 8)}


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        suffix: of its name.
        build: folder -> bytes of a whole one.
        reader: what reads it.
    """

    suffix: str
    build: Callable[[Path], bytes]
    reader: Callable[[Path], object]


KINDS = {
    "weights_safetensors": Kind(".safetensors", saved(save_tensors, ".safetensors"), load_layer),
    "weights_bin": Kind(".bin", saved(save_tensors, ".bin"), load_layer),
    "state_dict_pth": Kind(".pth", saved(save_tensors, ".pth"), read_state_dict),
    "kps_npz": Kind(".npz", saved(lambda path: save_kps(path, KPS), ".npz"), read_kps),
    "kps_pth": Kind(".pth", saved(lambda path: save_kps(path, KPS), ".pth"), read_kps),
    "kps_safetensors": Kind(".safetensors", saved(lambda path: save_kps(path, KPS), ".safetensors"), read_kps),
    "face_info_npz": Kind(
        ".npz", saved(lambda path: save_face_info(path, clips.make_face_info(4)), ".npz"), load_face_info
    ),
    "face_info_pt": Kind(
        ".pt", saved(lambda path: save_face_info(path, clips.make_face_info(4)), ".pt"), load_face_info
    ),
    "audio_states_pt": Kind(".pt", saved(lambda path: torch.save(STATES, path), ".pt"), load_audio_embeds),
    "png": Kind(".png", lambda folder: picture("PNG", "RGBA"), read_picture),
    "jpeg": Kind(".jpg", lambda folder: picture("JPEG"), read_picture),
    "webp": Kind(".webp", lambda folder: picture("WEBP"), read_picture),
    "gif": Kind(".gif", lambda folder: picture("GIF", "P"), read_picture),
    "tiff": Kind(".tif", lambda folder: picture("TIFF"), read_picture),
    "wav": Kind(".wav", lambda folder: wav(), read_sound),
    "mp3": Kind(".mp3", lambda folder: encoded_audio("mp3", "libmp3lame"), read_sound),
    "ogg": Kind(".ogg", lambda folder: encoded_audio("ogg", "libopus"), read_sound),
    "mp4": Kind(".mp4", saved(save_video, ".mp4"), read_video),
    "mkv": Kind(".mkv", saved(save_video, ".mkv"), read_video),
}


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files(name, tmp_path, fuzz_examples):
    kind = KINDS[name]
    whole = kind.build(tmp_path)
    path = tmp_path / f"mutated{kind.suffix}"

    @given(mutated(whole))
    def attack(content: bytes) -> None:
        path.write_bytes(content)
        read(kind.reader, path)

    path.write_bytes(whole)
    kind.reader(path)  # the seed itself is read
    fuzz(attack)(fuzz_examples)()
    assert not Path("/tmp/executed").exists()


# ---- files as values -------------------------------------------------------------------------------------------------

ROW = {"video": "a.mp4", "face_info": "a.npz", "audio_embeds": "a.pt", "duration": 1.5, "fps": 25.0, "num_frames": 30}
TRAINING = {"train_stage": "stage_2", "seed": 1, "snr_gamma": 5.0, "tracker": None, "data": {"train_width": 64,
    "train_bs": 1, "crop_ratio": [0.9, 1.0], "meta_paths": ["m.json"]}, "solver": {"learning_rate": 1e-5,
    "ema_decay": 0.9, "mixed_precision": "no"}}  # fmt: skip
DEFAULTS = {"image_width": 96, "fps": 30.0, "guidance": "audio", "context_frames": 16, "median_filter": True}

VALUES = {
    "metadata": ("metadata.json", [ROW, ROW], load_metadata),
    "training_config": ("config.yaml", TRAINING, load_config),
    "inference_defaults": ("inference_defaults.json", DEFAULTS, lambda path: load_model_defaults(path.parent)),
    "config": ("config.json", {"in_channels": 4, "block_out_channels": [8, 16]}, read_config),
}


@pytest.mark.parametrize("name", VALUES)
def test_hostile_values(name, tmp_path, fuzz_examples):
    file_name, whole, reader = VALUES[name]
    path = tmp_path / file_name

    @given(st.one_of(altered(whole).map(dumps), mutated(json.dumps(whole).encode())))
    def attack(content: bytes) -> None:
        path.write_bytes(content)
        read(reader, path)

    path.write_text(json.dumps(whole))
    reader(path)
    fuzz(attack)(fuzz_examples)()


# ---- state of a run --------------------------------------------------------------------------------------------------

PROGRESS = {"step": 3, "num_samples": 6, "stage": "stage_1", "sha256": {}}
ENTRY = {"step": 1, "loss": 0.5, "mouth_loss": 0.25, "lr": 1e-5}
CLIP = {"video": "000.mp4", "face_info": "000.npz", "audio_embeds": "000.pt", "duration": 1.0, "fps": 25.0,
    "num_frames": 25, "num_interpolated_frames": 0, "source_start_seconds": 0.0}  # fmt: skip
RECORD = {"source": "a.mp4", "num_bytes": 3, "failed": False, "clips": [CLIP],
    "rejected": [{"clip": 1, "reason": "too_short", "detail": "x"}]}  # fmt: skip
STATES_OF_RUNS = {
    "progress": ("trainer.json", PROGRESS, lambda path: read_progress(path.parent)),
    "run_log": ("log.jsonl", ENTRY, lambda path: RunLog(path.parent, 5).entries),
    "prepared_record": ("record.json", RECORD, read_record),
}


def test_digests_are_of_the_checkpoints_own_files(tmp_path):
    """A device among them would be read without end."""
    folder = tmp_path / "step_00000003"
    folder.mkdir()
    for name in ("/dev/zero", "../x", "/proc/self/mem", "a\0b"):
        (folder / "trainer.json").write_text(json.dumps({**PROGRESS, "sha256": {name: "0"}}))
        assert read(lambda path: read_progress(path.parent), folder / "trainer.json") is None


@pytest.mark.parametrize("name", STATES_OF_RUNS)
def test_states_of_runs(name, tmp_path, fuzz_examples):
    file_name, whole, reader = STATES_OF_RUNS[name]
    folder = tmp_path / "step_00000003"
    folder.mkdir()
    path = folder / file_name
    path.write_text(json.dumps(whole) + "\n")
    assert reader(path)  # the seed itself is read

    @given(st.one_of(altered(whole).map(dumps), mutated(json.dumps(whole).encode() + b"\n")))
    def attack(content: bytes) -> None:
        path.write_bytes(content)
        read(reader, path)

    fuzz(attack)(fuzz_examples)()
    for text in DEEP:
        path.write_text(text)
        read(reader, path)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "closed"])
def test_values_nested_a_million_deep(name, text, tmp_path):
    file_name, _, reader = VALUES[name]
    (tmp_path / file_name).write_text(text)
    assert read(reader, tmp_path / file_name) is None


@pytest.mark.parametrize("reader", [load_kps, load_face_info, load_audio_embeds], ids=lambda reader: reader.__name__)
def test_arrays_of_odd_kinds(reader, tmp_path, fuzz_examples):
    names = ["kps", "bbox", "landmark_2d_106", "det_score", "global_embeds", "fps", "height", "width"]
    path = tmp_path / "odd.npz"

    @given(st.dictionaries(st.sampled_from(names), arrays(), max_size=4))
    def attack(content: dict) -> None:
        np.savez(path, **content)
        read(reader, path)

    fuzz(attack)(fuzz_examples)()


KIND_NAMES = ["float8_e4m3fn", "bfloat16", "complex64", "bool", "int8", "float64", "uint16"]


@pytest.mark.parametrize("reader", [load_kps, load_face_info, load_audio_embeds, load_layer], ids=lambda r: r.__name__)
def test_tensors_of_odd_kinds(reader, tmp_path, fuzz_examples):
    path = tmp_path / "odd.pth"
    if reader in (load_face_info, load_audio_embeds):
        path = path.with_suffix(".pt")
    shapes, kinds = st.lists(st.integers(0, 4), max_size=4), st.sampled_from(KIND_NAMES)
    tensors = st.builds(lambda shape, kind: torch.zeros(shape).to(getattr(torch, kind)), shapes, kinds)
    views = st.builds(lambda columns: torch.zeros(3, 8)[:, ::columns], st.integers(1, 8))
    odd = st.one_of(
        tensors,
        views,
        st.just(torch.zeros(3, 2).to_sparse()),
        st.just(torch.quantize_per_tensor(torch.zeros(3, 2), 0.1, 0, torch.quint8)),
        st.just(torch.empty(3, 2, device="meta")),
        st.just(torch.nn.Parameter(torch.zeros(3, 2))),
        st.just(torch.full((3, 2), float("nan"))),
    )
    names = st.sampled_from(["weight", "bias", "global_embeds", "kps", "bbox", 3, None])
    content = st.one_of(odd, st.lists(odd, max_size=3), st.dictionaries(names, odd, max_size=3), st.none(), st.text())

    @given(content)
    def attack(value: object) -> None:
        torch.save(value, path)
        read(reader, path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(attack)(fuzz_examples)()
