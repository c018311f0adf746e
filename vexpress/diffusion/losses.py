"""Losses of a training step."""

from torch import Tensor


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """Loss weight of each timestep, in (0, 1]: min(SNR + 1, gamma) / (SNR + 1).

    Args:
        alphas_cumprod: (T,), the noise schedule.
        timesteps: (b,) int64.
        gamma: 1 and up; 5 as released.

    Source: Min-SNR, arXiv 2303.09556, with SNR + 1 in place of SNR for v-prediction, as released.
    """
    inverse = 1 - alphas_cumprod[timesteps]  # SNR + 1 = 1 / (1 - alpha), without an infinity or a division by zero
    return (gamma * inverse).clamp(max=1.0)


def weighted_loss(
    prediction: Tensor,
    target: Tensor,
    timestep_weights: Tensor,
    lip_masks: Tensor,
    lip_loss_weight: float,
    motion_loss_weight: float = 0.0,
    eye_masks: Tensor | None = None,
    eye_loss_weight: float = 1.0,
) -> Tensor:
    """Mean squared error that counts more on the mouth, and perhaps the eyes, and less at easy timesteps.

    Args:
        prediction: (b c f h w).
        target: (b c f h w).
        timestep_weights: (b,).
        lip_masks: (b 1 f h w), 1 on the mouth, 0 elsewhere.
        lip_loss_weight: weight on the mouth; elsewhere it is 1.
        motion_loss_weight: of the same error of differences between neighbouring frames; an error that all frames have
            in common, such as a colour, is none there. 0 as released.
        eye_masks: (b 1 f h w), 1 on eyes and brows; needed for another weight than 1.
        eye_loss_weight: weight there, where the mouth is not. 1 as released.

    Returns:
        Scalar; means are over all elements, so a higher weight raises the loss, as released.

    Source: paper section 3.3; the motion part is ours.
    """
    error = prediction.float() - target.float()
    weights = 1 + (lip_loss_weight - 1) * lip_masks
    if eye_loss_weight != 1:
        weights = weights + (eye_loss_weight - 1) * eye_masks * (1 - lip_masks)
    weights = weights * timestep_weights.reshape(-1, 1, 1, 1, 1)
    loss = (error.square() * weights).mean()
    if motion_loss_weight and error.shape[2] > 1:
        loss = loss + motion_loss_weight * (error.diff(dim=2).square() * weights[:, :, 1:]).mean()
    return loss
