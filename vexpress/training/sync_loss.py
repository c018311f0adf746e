"""SyncNet, frozen, as a teacher: mouths of predicted frames should fit the speech."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vexpress.diffusion.latents import Autoencoder, unscale_latents
from vexpress.syncnet import PADDING_VALUE, SyncNet


class SyncLoss:
    """1 - the cosine of SyncNet's embeddings of five predicted frames and of the speech meanwhile.

    A sample counts only at timesteps up to a limit: what is predicted from noise is too blurred to have lips. Frames
    are decoded one by one and again for the gradient, so that memory is that of one.

    Args:
        network: in evaluation mode and without gradients; so is the next.
        vae: decodes.
        max_timestep: the limit.

    Source: the loss of wav2lip, arXiv 2008.10010, in latent diffusion as in LatentSync, arXiv 2412.09262.
    """

    def __init__(self, network: SyncNet, vae: Autoencoder, max_timestep: int):
        self.network, self.vae, self.max_timestep = network, vae, max_timestep

    def __call__(self, clean: Tensor, timesteps: Tensor, windows: Mapping[str, Tensor]) -> Tensor:
        """Computes the mean over samples, where those beyond the limit count as 0.

        Args:
            clean: predicted latents (b c f h w) float32, scaled for diffusion.
            timesteps: (b,).
            windows: see `vexpress.data.sync_windows.sync_window`, with b in front.
        """
        counted = (timesteps <= self.max_timestep).nonzero()[:, 0].tolist()
        if not counted:
            return clean.new_zeros(())
        crops = torch.stack([self._crops(clean[i], windows, i) for i in counted])
        with torch.no_grad():
            speech = self.network.encode_speech(windows["sync_cepstra"][counted].float())
        frames = self.network.encode_frames(crops)
        return (1 - F.cosine_similarity(frames, speech)).sum() / len(clean)

    def _crops(self, clean: Tensor, windows: Mapping[str, Tensor], sample: int) -> Tensor:
        """SyncNet's crops (3 5 px px) BGR in 0..255 of a sample's latents (c f h w)."""
        latents = rearrange(clean[:, windows["sync_frames"][sample]], "c f h w -> f c h w")
        pairs = zip(latents, windows["sync_corners"][sample])
        return torch.stack([checkpoint(self._crop, *pair, use_reentrant=False) for pair in pairs], dim=1)

    def _crop(self, latents: Tensor, corners: Tensor) -> Tensor:
        """The crop (3 px px) within corners (2 2) px of the frame of latents (c h w); beyond the frame it is grey."""
        pixels = self.vae.decode(unscale_latents(self.vae, latents[None]).to(self.vae.dtype)).sample.float()
        values = (pixels.flip(1) + 1) * 127.5 - PADDING_VALUE
        px = self.network.config.crop_px
        size = corners.new_tensor(pixels.shape[:1:-1])  # width and height
        steps = (torch.arange(px, device=corners.device) + 0.5) / px
        places = corners[:1] + steps[:, None] * (corners[1:] - corners[:1])  # (px 2), of columns and of rows
        columns, rows = (2 * places / size - 1).unbind(1)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None]
        cropped = F.grid_sample(values, grid.to(values), mode="bilinear", padding_mode="zeros", align_corners=False)
        return cropped[0] + PADDING_VALUE
