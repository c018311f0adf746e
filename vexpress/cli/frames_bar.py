"""One bar on the terminal for all the work on a video: frames done, frames per second, time left."""

from typing import Any, TextIO

from tqdm import tqdm

from vexpress.pipeline import VExpressPipeline

DENOISING_SHARE = 0.9  # of the time of joint sampling, which has no frame done before all are denoised
FORMAT = "{desc} |{bar}| {percentage:.0f}%, {elapsed} passed, {remaining} left"


class FramesBar:
    """Shows the stages of the pipeline's work as one.

    Args:
        num_frames: of the video.
        is_rolling: frames are done while others are still denoised.
        file: to write to; None is stderr.
    """

    def __init__(self, num_frames: int, is_rolling: bool, file: TextIO | None = None):
        self._num_frames, self._is_rolling, self._file = num_frames, is_rolling, file
        self._bar: tqdm | None = None
        self._stages: list[Stage] = []  # rolling: decoding and, within it, denoising; joint: denoising, then decoding

    def begin(self, total: int | None) -> "Stage":
        """The next stage of the work; the first one shows the bar."""
        self._bar = self._bar or tqdm(total=self._num_frames, bar_format=FORMAT, file=self._file, miniters=0)
        self._stages.append(Stage(self, total or 1))
        return self._stages[-1]

    def show(self) -> None:
        """Brings the bar up to date, not more often than one can see."""
        shares = [stage.done / stage.total for stage in self._stages] + [0.0, 0.0]
        frames_done = shares[0] if self._is_rolling else shares[1]
        done = frames_done if self._is_rolling else DENOISING_SHARE * shares[0] + (1 - DENOISING_SHARE) * shares[1]
        self._bar.n = done * self._num_frames
        rate = self._bar.n / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.desc = f"{round(frames_done * self._num_frames)} of {self._num_frames} frames, {rate:.1f} per second"
        self._bar.update(0)

    def end(self, stage: "Stage", failed: bool) -> None:
        """Leaves the line of the bar, after the last stage or a failure."""
        if failed or stage is self._stages[0 if self._is_rolling else -1] and len(self._stages) == 2:
            self._bar.close()


class Stage:
    """What the pipeline takes for a progress bar.

    Args:
        bar: that shows it.
        total: pieces of work.
    """

    def __init__(self, bar: FramesBar, total: int):
        self.done, self.total, self._bar = 0, total, bar

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._bar.end(self, kind is not None)

    def update(self, count: int = 1) -> None:
        """Some more pieces are done."""
        self.done += count
        self._bar.show()

    def set_description(self, _: str) -> None:
        """Not shown."""

    def set_postfix_str(self, _: str) -> None:
        """Not shown."""


class TerminalPipeline(VExpressPipeline):
    """The pipeline with one bar for all its work.

    Attributes:
        bar: None shows nothing.
    """

    bar: FramesBar | None = None

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """The bar's next stage."""
        return self.bar.begin(total) if self.bar else super().progress_bar(iterable, total)
