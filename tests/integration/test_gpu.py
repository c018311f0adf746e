"""What only a CUDA device can show: placement, half precision, and that saving memory changes nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
INPUTS = {
    "reference_image": Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)),
    "audio_waveform": torch.randn(8000, generator=torch.Generator().manual_seed(0)),
    "kps_sequence": torch.tensor([[24.0, 24], [40, 24], [32, 40]]) + torch.arange(15)[:, None, None] % 4,
    "num_inference_steps": 2,
    "context_frames": 8,
    "context_overlap": 2,
    "output_type": "pt",
}


def test_saving_memory_changes_nothing_and_can_be_repeated():
    plain = tiny.pipeline().to("cuda")(**INPUTS).frames
    pipe = tiny.pipeline()
    for _ in range(2):
        pipe.enable_model_cpu_offload()
        frames = pipe(**INPUTS).frames
        assert torch.equal(frames, plain)
        assert {p.device.type for p in pipe.denoising_unet.parameters()} == {"cpu"}
    pipe.v_kps_guider.to("cpu")  # the only one that stays
    assert torch.cuda.memory_allocated() < 2**20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_full_precision(dtype):
    full = tiny.pipeline().to("cuda")(**{**INPUTS, "guidance_scale": 1}).frames
    half = tiny.pipeline().to("cuda", dtype)(**{**INPUTS, "guidance_scale": 1}).frames
    assert torch.isfinite(half).all()
    assert (half - full).abs().mean() < 0.05


def test_cuda_is_near_the_cpu():
    cpu = tiny.pipeline()(**{**INPUTS, "output_type": "latent"}).frames
    cuda = tiny.pipeline().to("cuda")(**{**INPUTS, "output_type": "latent"}).frames
    assert tiny.relative_error(cuda.cpu(), cpu) < 1e-2


def test_compiled_unet_runs():
    pipe = tiny.pipeline().to("cuda")
    expected = pipe(**{**INPUTS, "output_type": "latent"}).frames
    pipe.denoising_unet.compile(fullgraph=True)
    assert tiny.relative_error(pipe(**{**INPUTS, "output_type": "latent"}).frames, expected) < 1e-2
