"""Whether somebody speaks: silero-vad, from the weights in its package."""

import functools

import numpy as np
import torch

from vexpress.errors import InputError
from vexpress.prepare.settings import PrepareSettings

RATE_HZ = 16000
LOUDNESS_SAMPLES = 400


@functools.cache
def _load_detector():
    """silero-vad's ONNX network, which is data; its other form is TorchScript, a program.

    Raises:
        InputError: it is not installed.
    """
    num_threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad

        return load_silero_vad(sequence=True)
    except ImportError as error:
        problem = "silero-vad is not installed: pip install silero-vad, or take `speech_detector` loudness"
        raise InputError(problem, "speech_detector", "silero") from error
    finally:
        torch.set_num_threads(num_threads)  # importing silero_vad sets it to 1 for the whole process


def compute_speech_probabilities(waveform: np.ndarray) -> np.ndarray:
    """Computes how probable speech is: (n,) at 16 kHz -> (windows,) 0..1, one for 32 ms each.

    Raises:
        InputError: silero-vad is not installed.
    """
    return _load_detector().audio_forward(np.ascontiguousarray(waveform, np.float32))


def compute_levels_db(waveform: np.ndarray) -> np.ndarray:
    """Computes the loudness of windows of 25 ms in dBFS; a constant offset is no sound."""
    num_windows = len(waveform) // LOUDNESS_SAMPLES
    windows = waveform[: num_windows * LOUDNESS_SAMPLES].reshape(num_windows, LOUDNESS_SAMPLES)
    return 20 * np.log10(np.maximum(windows.std(axis=1, dtype=np.float64), 1e-10))


def measure_speech(waveform: np.ndarray, settings: PrepareSettings) -> dict[str, float]:
    """Measures which shares of sound (n,) at 16 kHz are loud enough and, if it is looked for, speech.

    Returns:
        loud_fraction, and speech_fraction.

    Raises:
        InputError: silero-vad is needed and not installed.
    """
    levels_db = compute_levels_db(waveform)
    values = {"loud_fraction": float((levels_db > settings.speech_db).mean()) if len(levels_db) else 0.0}
    if settings.speech_detector == "silero":
        probabilities = compute_speech_probabilities(waveform)
        values["speech_fraction"] = float((probabilities >= settings.speech_probability).mean())
    return values
