"""The shipped model and its held-out clips, for the tests of this folder."""

import json
from pathlib import Path

import pytest
import torch

from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips
from scripts.demo.measure_pack import NUM_FRAMES, load_options
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline

PACK_DIR = Path(__file__).parents[2] / "vexpress" / "demo_pack"
PACK_PX = json.loads((PACK_DIR / "inference_defaults.json").read_text())["image_width"]


def load_pipeline(dtype: torch.dtype = torch.float32) -> VExpressPipeline:
    pipeline = VExpressPipeline.from_pretrained(PACK_DIR, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> VExpressPipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def options() -> SamplingOptions:
    """What the pack asks for, as inference.py would."""
    return load_options(PACK_DIR)


@pytest.fixture(scope="module")
def clips() -> list[HeldoutClip]:
    return load_heldout_clips(PACK_DIR / "heldout", NUM_FRAMES)
