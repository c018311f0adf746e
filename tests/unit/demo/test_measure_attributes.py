"""The figures of attributes, of a pipeline that draws what is asked, and of one that mixes it up."""

import numpy as np
import torch
from PIL import Image

from scripts.demo import measure_attributes as measuring
from scripts.demo.drawn_people import mouth_from_speech
from scripts.demo.heldout_clips import HeldoutClip
from vexpress.media.audio import Audio
from vexpress.options import SamplingOptions
from vexpress.request import ClipInputs

NUM_FRAMES, FPS, SIZE_PX = 40, 25, 96


def make_clip() -> HeldoutClip:
    speech = np.random.default_rng(0).normal(0, 1, 16000 * NUM_FRAMES // FPS) * np.sin(np.arange(25600) / 2500) ** 2
    mouth = mouth_from_speech(speech.astype(np.float32), 16000, NUM_FRAMES, FPS)
    frames, kps = measuring.drawn_as_asked(0, np.tile([1.0, 1, 0, 0, 0, 0], (NUM_FRAMES, 1)), mouth, SIZE_PX, FPS)
    audio = Audio(speech[None].astype(np.float32), 16000)
    inputs = ClipInputs(Image.fromarray(frames[0]), audio, torch.from_numpy(kps), FPS)
    return HeldoutClip("drawn", inputs, frames, mouth, np.zeros((NUM_FRAMES, 3, 2)))


def measured(monkeypatch, mix) -> dict[str, dict[str, float]]:
    def regenerate(pipeline, clip, options):
        asked = mix(clip.inputs.attributes.numpy())
        return measuring.drawn_as_asked(0, asked, clip.mouth, SIZE_PX, FPS)[0]

    monkeypatch.setattr(measuring, "regenerate", regenerate)
    return measuring.measure(None, [make_clip()], SamplingOptions())


def test_a_perfect_model_passes_and_one_that_mixes_brows_into_the_smile_does_not(monkeypatch):
    figures = measured(monkeypatch, lambda asked: asked)
    assert min(figures["generated"][name] for name in ("gaze_x", "brows", "smile", "aperture")) > 0.9
    assert figures["generated"] == figures["true frames"]
    kinds = [f"{kind} changed" for kind in measuring.KINDS]
    assert max(figures[kind]["largest change of another's r"] for kind in kinds if kind != "lids changed") < 0.05

    def mix(asked):
        smile = np.clip(0.5 + 0.5 * asked[:, 4], 0, 1)
        return np.column_stack([asked[:, :5], smile])

    mixed = measured(monkeypatch, mix)
    assert mixed["brows changed"]["largest change of another's r"] > 0.1
