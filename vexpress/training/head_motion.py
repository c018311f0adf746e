"""Training of the head-motion network on any prepared data set: keypoints say how heads move, audio states why.

One process, a few minutes to hours on a CPU. The run's folder holds its state, a log, curves of validation and the
exported network; each file is written whole or not at all, and the same command resumes.
"""

import logging
import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vexpress.data.formats import load_audio_embeds, load_metadata
from vexpress.errors import InputError, first_line
from vexpress.fields import check_fields, option
from vexpress.files import replacing
from vexpress.models.head_motion import NUM_NUMBERS, HeadMotion, motion_from_speech
from vexpress.training.head_motion_data import MotionClip, all_pieces, load_clips, random_batch
from vexpress.training.run_log import RunLog
from vexpress.weights.bounds import check_archive
from vexpress.weights.head_motion import save_head_motion

logger = logging.getLogger(__name__)

NUMBERS = ("shift x", "shift y", "size", "roll", "turn", "nod")
STATE_FILE = "state.pt"
KNOWN_START_RATE = 0.75  # of pieces that go on from one before; the others begin a clip
WARM_UP_STEPS = 100
DECAY_SHARE = 0.4  # of the run, at its end, over which the learning rate falls to 0
NUM_PLOTTED_SEEDS = 3


@dataclass
class HeadMotionConfig:
    """A run's configuration.

    Raises:
        InputError: a value is out of bounds, or two of them exclude each other.
    """

    meta_paths: list[str] = option([], "metadata JSON files of prepared data sets", items=str)
    validation_meta_paths: list[str] = option(
        [], "clips for validation, which decides what is exported; unset: those of training", items=str
    )
    output_dir: str = option("runs/motion", "state, log, curves and the exported network; the same folder resumes")
    model_dir: str | None = option(None, "model folder that also gets the network at the end", type=str)
    seed: int = option(42, "same seed and data: same network", low=0, high=2**63 - 1)
    max_train_steps: int = option(2000, "updates in total, over all restarts", low=1, high=10**8 - 1)
    batch_size: int = option(64, "pieces per update", low=1, high=65536)
    learning_rate: float = option(2e-3, "peak of the learning rate; it falls to 0 at the end", low=0, high=1)
    weight_decay: float = option(5e-2, "of AdamW", low=0, high=10)
    dropout: float = option(0.15, "share of values that are left out, against learning clips by heart", low=0, high=0.9)
    ema_decay: float = option(0.998, "of the averaged weights, which are exported", low=0, high=0.999999)
    checkpointing_steps: int = option(500, "updates between states on disk", low=1, high=10**8)
    validation_steps: int = option(500, "updates between validations; 0 never", low=0, high=10**8)
    log_steps: int = option(50, "updates between lines of the log", low=1, high=10**8)
    width: int = option(48, "of the network", low=8, high=4096, multiple=2)
    num_audio_blocks: int = option(4, "of the part that reads speech", low=0, high=64)
    num_blocks: int = option(6, "of the part that makes motion", low=1, high=64)
    points_per_second: float = option(10.0, "of the splines; 10 hold motion up to about 4 Hz", low=2, high=60)
    piece_points: int = option(24, "points of a piece: about 2 s", low=4, high=1024)
    overlap_points: int = option(8, "of these, points that a piece shares with the one before", low=1, high=1023)
    context_points: int = option(20, "points of speech seen before and after a piece", low=0, high=1024)

    def __post_init__(self):
        check_fields(self)
        if self.overlap_points >= self.piece_points:
            raise InputError(f"must be below `piece_points` {self.piece_points}", "overlap_points", self.overlap_points)

    def build_network(self, audio_width: int) -> HeadMotion:
        """The network of these sizes, with the run's first weights."""
        names = ("width", "num_audio_blocks", "num_blocks", "points_per_second", "piece_points", "overlap_points")
        sizes = {name: getattr(self, name) for name in (*names, "context_points")}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return HeadMotion(audio_width=audio_width, dropout=self.dropout, **sizes)


def flow_loss(
    network: HeadMotion, pieces: Tensor, steps: Tensor, generator: torch.Generator, dropout: float = 0.0
) -> Tensor:
    """Mean square error of the velocity, over what the piece before has not made.

    Source: flow matching, arXiv 2210.02747, equation 23 with straight paths.
    """
    target = network.whiten(pieces)
    noise = torch.randn(target.shape, generator=generator)
    time = torch.rand(len(target), generator=generator)
    goes_on = torch.rand(len(target), generator=generator) < KNOWN_START_RATE
    is_known = goes_on[:, None] & (torch.arange(target.shape[1]) < network.config.overlap_points)
    if dropout:
        kept = torch.rand(len(steps), 1, 1, steps.shape[3], generator=generator) >= dropout  # whole features
        steps = steps * kept / (1 - dropout)
    at = torch.lerp(noise, target, time[:, None, None])
    at = torch.where(is_known[..., None], target, at)
    velocity = network(at, is_known.float(), time, network.encode_audio(steps))
    unknown = (~is_known).float()[..., None]
    return ((velocity - (target - noise)).square() * unknown).sum() / (unknown.sum() * NUM_NUMBERS)


class HeadMotionTrainer:
    """A run.

    Args:
        config: of the run.

    Raises:
        InputError: no data, or the folder holds another run.
    """

    def __init__(self, config: HeadMotionConfig):
        self.config, self.folder = config, Path(config.output_dir)
        if not config.meta_paths:
            raise InputError("is empty: give metadata files of prepared data sets", "meta_paths", [])
        first = load_metadata(config.meta_paths[0])
        if not first:
            raise InputError("holds no clips", "meta_paths", config.meta_paths[0])
        audio_width = load_audio_embeds(first[0].audio_embeds).shape[1]
        self.network = config.build_network(audio_width)
        self.clips = load_clips(config.meta_paths, self.network)
        validation = config.validation_meta_paths
        self.validation_clips = load_clips(validation, self.network) if validation else self.clips[:8]
        self.network.set_statistics(all_pieces(self.clips, config.piece_points))
        self.averaged = deepcopy(self.network).eval().requires_grad_(False)
        self.best, self.best_loss = deepcopy(self.averaged), math.inf
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.step = 0
        self._resume()
        self.log = RunLog(self.folder, self.step)

    def train(self) -> Path:
        """Trains until `max_train_steps`; returns the exported network's path."""
        config = self.config
        minutes = sum(clip.seconds for clip in self.clips) / 60
        num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        logger.info("%d clips, %.0f min; %d parameters", len(self.clips), minutes, num_parameters)
        losses: list[float] = []
        while self.step < config.max_train_steps:
            losses.append(self._update())
            self.step += 1
            if self.step % config.log_steps == 0:
                self.log.add({"step": self.step, "loss": sum(losses) / len(losses)})
                logger.info("step %d | loss %.4f", self.step, sum(losses) / len(losses))
                losses = []
            is_last = self.step == config.max_train_steps
            if config.validation_steps and (is_last or self.step % config.validation_steps == 0):
                self.validate()
            if is_last or self.step % config.checkpointing_steps == 0:
                self.save()
        return self.export()

    def _update(self) -> float:
        """One update, whose randomness depends on the seed and the step alone."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        seed = int(rng.integers(2**63))
        generator = torch.Generator().manual_seed(seed)
        pieces, steps = random_batch(self.clips, self.network, config.batch_size, rng)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.step, config.max_train_steps)
        self.network.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # dropout within the network takes the global numbers
            loss = flow_loss(self.network, pieces, steps, generator, config.dropout)
        if not loss.isfinite():
            raise InputError(f"the loss of step {self.step} is not finite; lower `learning_rate`")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        # Early weights do not linger in the average.
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(self.averaged.parameters(), self.network.parameters()):
                mean.lerp_(parameter, 1 - decay)
        return loss.item()

    @torch.no_grad()
    def validate(self) -> None:
        """Measures the averaged network on held-out clips, and draws curves of one."""
        rng = np.random.default_rng([self.config.seed, 1, 0])
        losses = []
        for _ in range(8):
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            batch = random_batch(self.validation_clips, self.averaged, 64, rng)
            losses.append(flow_loss(self.averaged, *batch, generator).item())
        loss = sum(losses) / len(losses)
        self.log.add({"step": self.step, "validation_loss": loss})
        if loss < self.best_loss:
            self.best.load_state_dict(self.averaged.state_dict())
            self.best_loss = loss
        self.log.render_curve()
        path = self.folder / "validation" / f"step_{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        render_curves(path, self.averaged, max(self.validation_clips[:8], key=lambda clip: clip.seconds))
        logger.info("step %d | validation loss %.4f | true and made curves: %s", self.step, loss, path)

    def save(self) -> None:
        """Writes the whole state."""
        state = {
            "step": self.step,
            "config": dict(self.network.config),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "best": self.best.state_dict(),
            "best_loss": self.best_loss,
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(self.folder / STATE_FILE) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        try:
            check_archive(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.best.load_state_dict(state["best"])
            self.best_loss = float(state["best_loss"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except Exception as error:  # readers of damaged files raise anything
            problem = f"{path} does not fit this configuration ({first_line(error)}); change it to start anew"
            raise InputError(problem, "output_dir", self.folder) from error
        logger.info("resuming at step %d from %s", self.step, path)

    def export(self) -> Path:
        """Writes the network into `export/`, and into the model folder if there is one.

        It is the averaged one that was best on held-out clips, or the last one where there are none.
        """
        network = self.best if self.config.validation_meta_paths and self.best_loss < math.inf else self.averaged
        folders = [self.folder / "export", *([self.config.model_dir] if self.config.model_dir else [])]
        return [save_head_motion(Path(folder), network) for folder in folders][-1]


def learning_rate_factor(step: int, max_steps: int) -> float:
    """Rises over `WARM_UP_STEPS`, stays at 1, and falls to 0 over the run's last part."""
    rising = (step + 1) / WARM_UP_STEPS
    falling = (max_steps - step) / max(1, math.ceil(DECAY_SHARE * max_steps))
    return min(1.0, rising, falling)


def render_curves(path: Path, network: HeadMotion, clip: MotionClip) -> None:
    """Draws the six numbers of a clip: the true ones, and those of a few seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_frames = len(clip.motion)
    times = (np.arange(num_frames) + 0.5) / clip.fps
    hidden_states = clip.hidden_states.float()
    made = [motion_from_speech(network, hidden_states, num_frames, clip.fps, seed) for seed in range(NUM_PLOTTED_SEEDS)]
    figure = Figure(figsize=(9, 10), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (axes, name) in enumerate(zip(figure.subplots(NUM_NUMBERS, sharex=True), NUMBERS)):
        axes.plot(times, clip.motion[:, i], color="black", linewidth=2, label="true")
        for seed, motion in enumerate(made):
            axes.plot(times, motion[:, i], linewidth=1, label=f"made, seed {seed}")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    axes.set_xlabel("s")
    figure.axes[0].legend(ncols=4, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
