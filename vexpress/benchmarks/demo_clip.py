"""The embedded examples as inputs of the pipeline."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vexpress.media.audio import load_audio
from vexpress.media.images import load_image
from vexpress.media.keypoints import load_kps
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.options import SamplingOptions, load_model_defaults
from vexpress.pipeline import VExpressPipeline


@dataclass(frozen=True)
class DemoClip:
    """A model, and what it can make a video of.

    Attributes:
        pipeline: without progress bars.
        options: the model's.
        portrait: at the model's size.
        speech: (n,), at the pipeline's rate.
        kps: (f 3 2) px, of a moving head.
    """

    pipeline: VExpressPipeline
    options: SamplingOptions
    portrait: Image.Image
    speech: Tensor
    kps: Tensor

    @classmethod
    def load(cls, model_dir: str | Path | None = None, preset: str | None = None) -> "DemoClip":
        """The embedded examples, with a model of that folder and a preset's sampler; None: the embedded model's."""
        folder, examples = model_dir or EMBEDDED_MODEL_DIR, EMBEDDED_MODEL_DIR / "examples"
        options = SamplingOptions(**load_model_defaults(folder, preset))
        pipeline = VExpressPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        image, size = load_image(examples / "portrait.png"), (options.image_width, options.image_height)
        scale = torch.tensor(size) / torch.tensor(image.size)
        return cls(
            pipeline,
            options,
            image.resize(size, Image.Resampling.LANCZOS),
            load_audio(examples / "speech.wav").resampled_mono(pipeline.audio_processor.sampling_rate),
            torch.as_tensor(load_kps(examples / "driving_kps.npz").kps).float() * scale,
        )
