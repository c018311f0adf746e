"""A head's motion from speech: a small flow-matching network over pieces that overlap, of any length, as a stream.

Motion is six numbers over time, relative to the head's own rest: shift in x and y in distances of the eyes, logarithm
of the size, roll and turn in rad, and how far the nose is below the eyes (`vexpress.media.retargeting` measures them
and puts them on any face). Each is a cubic spline with a few points per second, so that all that is made is smooth.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

NUM_NUMBERS = 6
SPLINE_MARGIN = 3  # points of a cubic spline beyond those that lie within the clip
LARGEST_DEVIATIONS = 5.0  # what is made is bent back to within so many standard deviations


class ResidualBlock(nn.Module):
    """A convolution over time whose input is scaled and shifted by what it is conditioned on."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float, condition_width: int = 0):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=not condition_width)
        self.condition = nn.Linear(condition_width, 2 * width) if condition_width else None
        self.conv = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (b t d), condition (b t c) -> (b t d)."""
        hidden = self.norm(x)
        if self.condition is not None:
            scale, shift = self.condition(condition).chunk(2, dim=-1)
            hidden = hidden * (1 + scale) + shift
        hidden = self.conv(nn.functional.gelu(hidden).mT).mT
        return x + self.out(self.dropout(nn.functional.gelu(hidden)))


class HeadMotion(ModelMixin, ConfigMixin):
    """Predicts the velocity that carries noise to motion, for one piece, given speech and the end of the piece before.

    Args:
        audio_width: of the audio encoder's hidden states.
        width: inside.
        num_audio_blocks: of the part that reads speech.
        num_blocks: of the part that makes motion.
        points_per_second: of the splines.
        piece_points: points of a piece.
        overlap_points: of these, the first ones that the piece before has made.
        context_points: points of speech that are seen before and after a piece.
        steps_per_point: audio steps for each point of a spline.
        dropout: in training, share of values that are left out within blocks.

    The network works on whitened motion: a piece of each number is multiplied by the inverse of the Cholesky factor of
    its covariance in the training data. White noise then stands for motion with the right spectrum, and errors weigh
    equally at all speeds. The factor is triangular, so the first points of a piece are the first whitened values.

    Source: flow matching, arXiv 2210.02747; pieces that continue each other by what they share, as in the release's
    segment-wise video (paper section 3.4).
    """

    @register_to_config
    def __init__(
        self,
        audio_width: int = 768,
        width: int = 48,
        num_audio_blocks: int = 4,
        num_blocks: int = 6,
        points_per_second: float = 10.0,
        piece_points: int = 24,
        overlap_points: int = 8,
        context_points: int = 20,
        steps_per_point: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.register_buffer("factors", torch.eye(piece_points).repeat(NUM_NUMBERS, 1, 1))
        self.register_buffer("deviations", torch.ones(NUM_NUMBERS))
        self.audio_norm = nn.LayerNorm(audio_width, elementwise_affine=False)
        self.audio_in = nn.Linear(audio_width * steps_per_point, width)
        self.audio_blocks = nn.ModuleList(
            ResidualBlock(width, 5, 2 ** (i % 3), dropout) for i in range(num_audio_blocks)
        )
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.positions = nn.Parameter(torch.zeros(piece_points, width))
        self.motion_in = nn.Linear(2 * NUM_NUMBERS + 1, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, 3, 2 ** (i % 3), dropout, width) for i in range(num_blocks))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, NUM_NUMBERS)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def encode_audio(self, steps: Tensor) -> Tensor:
        """Speech around a piece (b n s d), n = piece_points + 2 context_points, -> (b piece_points width)."""
        context, num_points = self.config.context_points, self.config.piece_points
        hidden = self.audio_in(self.audio_norm(steps).flatten(2))
        for block in self.audio_blocks:
            hidden = block(hidden)
        return hidden[:, context : context + num_points]

    def forward(self, whitened: Tensor, is_known: Tensor, time: Tensor, audio: Tensor) -> Tensor:
        """Predicts the velocity.

        Args:
            whitened: (b t 6), between noise at time 0 and motion at time 1; what is known is motion.
            is_known: (b t) float, 1 where the piece before has made it.
            time: (b,).
            audio: (b t d) from `encode_audio`.

        Returns:
            (b t 6).
        """
        half = self.config.width // 2
        frequencies = torch.exp(math.log(100) * torch.arange(half, device=time.device) / half)
        angles = time[:, None] * frequencies.to(time)
        clock = self.time_in(torch.cat([angles.sin(), angles.cos()], -1))[:, None]
        curves = torch.einsum("nts,bsn->btn", self.factors.to(whitened), whitened)  # what they stand for: smooth
        x = self.motion_in(torch.cat([whitened, curves, is_known[..., None]], -1)) + self.positions
        condition = audio + clock
        for block in self.blocks:
            x = block(x, condition)
        return self.out(self.norm_out(x))

    def whiten(self, points: Tensor) -> Tensor:
        """Motion (b t 6) of t <= piece_points points -> whitened (b t 6)."""
        factors = self.factors[:, : points.shape[1], : points.shape[1]].double()
        scaled = (points.double() / self.deviations.double()).permute(2, 1, 0)  # (6 t b)
        return torch.linalg.solve_triangular(factors, scaled, upper=False).permute(2, 1, 0).to(points.dtype)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Turns `whiten` around, for a whole piece."""
        curves = torch.einsum("nts,bsn->btn", self.factors.double(), whitened.double())
        return (curves * self.deviations.double()).to(whitened.dtype)

    @torch.no_grad()
    def set_statistics(self, pieces: Tensor) -> None:
        """Takes deviations and whitening from motion (n t 6) of whole pieces."""
        self.deviations.copy_(pieces.double().square().mean((0, 1)).sqrt().clamp_min(1e-3))
        scaled = pieces.double() / self.deviations.double()
        covariance = torch.einsum("btn,bsn->nts", scaled, scaled) / len(pieces)
        power = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-3)[:, None, None]
        identity = torch.eye(self.config.piece_points, dtype=torch.float64)
        self.factors.copy_(torch.linalg.cholesky(covariance + 1e-6 * power * identity))

    def steps_around(self, hidden_states: Tensor, seconds: float, first: int, num_points: int) -> Tensor:
        """The audio steps of some points of a clip.

        Args:
            hidden_states: (m d) of the clip; its ends go on beyond it.
            seconds: length of the clip.
            first: number of the first point, which may be before the clip.
            num_points: how many.

        Returns:
            (num_points s d).
        """
        per_point = self.config.steps_per_point
        number = torch.arange(num_points)[:, None] + first - 1  # point 1 of a spline lies at the clip's start
        within = (torch.arange(per_point) + 0.5) / per_point - 0.5
        times = (number + within) / self.config.points_per_second
        position = (times * len(hidden_states) / seconds - 0.5).clamp(0, len(hidden_states) - 1).double()
        before = position.long()
        after = (before + 1).clamp_max(len(hidden_states) - 1)
        weight = (position - before)[..., None].to(hidden_states)
        before, after = before.to(hidden_states.device), after.to(hidden_states.device)
        return torch.lerp(hidden_states[before], hidden_states[after], weight)


@torch.inference_mode()
def stream_points(
    network: HeadMotion, hidden_states: Tensor, seconds: float, seed: int, num_steps: int = 10
) -> Iterator[Tensor]:
    """Makes the points of a head's motion, piece by piece.

    A piece needs the speech until `context_points` after its end, and what it shares with the piece before; its noise
    depends on the seed and the piece's number alone. So a longer clip begins as a shorter one.

    Args:
        network: on any device.
        hidden_states: (m d) of the audio encoder.
        seconds: length of the clip.
        seed: same seed and speech: same motion.
        num_steps: of the midpoint rule, from noise to motion.

    Yields:
        (n 6) float32 on the CPU, those that are new.
    """
    config, device, dtype = network.config, network.device, network.dtype
    total, made = num_points_of(seconds, config.points_per_second), 0
    known = torch.zeros(0, NUM_NUMBERS, device=device)
    number = 0
    while made < total:
        first = made - len(known)
        around = config.piece_points + 2 * config.context_points
        steps = network.steps_around(hidden_states, seconds, first - config.context_points, around)
        audio = network.encode_audio(steps[None].to(device, dtype))
        state = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
        noise = torch.randn(1, config.piece_points, NUM_NUMBERS, generator=torch.Generator().manual_seed(state))
        piece = solve_piece(network, noise.to(device), known, audio, num_steps)
        new = piece[len(known) :]
        known = piece[-config.overlap_points :]
        number += 1
        yield new[: total - made].float().cpu()
        made += len(new)


def solve_piece(network: HeadMotion, noise: Tensor, known: Tensor, audio: Tensor, num_steps: int) -> Tensor:
    """Follows the velocity from noise (1 t 6) to the points (t 6) of a piece that begins with the known ones (k 6)."""
    whitened = noise.clone()
    is_known = torch.zeros(noise.shape[:2], device=noise.device)
    is_known[:, : len(known)] = 1
    if len(known):
        whitened[:, : len(known)] = network.whiten(known[None])

    def velocity(at: Tensor, time: float) -> Tensor:
        moment = torch.full((1,), time, device=noise.device, dtype=network.dtype)
        found = network(at.to(network.dtype), is_known.to(network.dtype), moment, audio).float()
        return found * (1 - is_known[..., None])

    for step in range(num_steps):
        time, length = step / num_steps, 1 / num_steps
        middle = whitened + length / 2 * velocity(whitened, time)
        whitened = whitened + length * velocity(middle, time + length / 2)
    piece = network.unwhiten(whitened)[0]
    piece[: len(known)] = known
    return piece


def motion_from_speech(
    network: HeadMotion,
    hidden_states: Tensor,
    num_frames: int,
    fps: float,
    seed: int,
    strength: float = 1.0,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Makes a head's motion.

    Args:
        network: on any device.
        hidden_states: (m d) of the audio encoder, of speech as long as the video.
        num_frames: of the video; likewise its fps.
        seed: same seed and speech: same motion.
        strength: 1 moves as the training data do, 0 not at all.
        check: called after each piece; may raise what ends the work.

    Returns:
        (f 6) float64, see above.
    """
    seconds = num_frames / fps
    pieces = []
    for piece in stream_points(network, hidden_states, seconds, seed):
        check()
        pieces.append(piece)
    points = torch.cat(pieces).double()
    largest = LARGEST_DEVIATIONS * network.deviations.double().cpu()
    points = strength * largest * torch.tanh(points / largest)
    times = (torch.arange(num_frames, dtype=torch.float64) + 0.5) / fps
    return spline_matrix(times, len(points), network.config.points_per_second) @ points


# ---- splines -------------------------------------------------------------------------------------------------------


def num_points_of(seconds: float, points_per_second: float) -> int:
    """Points that a cubic spline over a clip needs."""
    return math.ceil(seconds * points_per_second) + SPLINE_MARGIN


def spline_matrix(times: Tensor, num_points: int, points_per_second: float) -> Tensor:
    """Weights (f num_points) float64 of a uniform cubic B-spline's points at times (f) s; point 1 lies at time 0."""
    distance = (times.double()[:, None] * points_per_second + 1 - torch.arange(num_points)).abs()
    near = 2 / 3 - distance.square() + distance.pow(3) / 2
    far = (2 - distance).clamp_min(0).pow(3) / 6
    return torch.where(distance < 1, near, far)


def fit_points(motion: Tensor, fps: float, points_per_second: float) -> Tensor:
    """The points (n 6) of the splines that fit a motion (f 6) best; where frames say little, they are smooth."""
    times = (torch.arange(len(motion), dtype=torch.float64) + 0.5) / fps
    num_points = num_points_of(len(motion) / fps, points_per_second)
    weights = spline_matrix(times, num_points, points_per_second)
    bends = torch.eye(num_points, dtype=torch.float64).diff(n=3, dim=0)
    system = weights.T @ weights + 1e-4 * bends.T @ bends
    return torch.linalg.solve(system, weights.T @ motion.double())
