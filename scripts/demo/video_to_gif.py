"""Turns a short video into a GIF for a README.

python -m scripts.demo.video_to_gif --video_path output/demo.mp4 --output_path docs/demo.gif
"""

import sys

from PIL import Image

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.media.video import constant_rate, read_frames

GIF_FPS = 15  # browsers show hundredths of a second


def main(arguments: list[str] | None = None) -> None:
    """Video -> GIF."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video_path", required=True)
    parser.add_argument("--output_path", required=True)
    parser.add_argument("--width", type=int, default=192, help="px")
    args = parser.parse_args(arguments)
    if not 16 <= args.width <= 2048:
        raise InputError("must be 16 to 2048 px", "width", args.width)
    path = check_output_path(args.output_path, "output_path", (args.video_path,))
    frames = [Image.fromarray(frame) for frame in constant_rate(read_frames(args.video_path), GIF_FPS)]
    size = (args.width, round(args.width * frames[0].height / frames[0].width))
    frames = [frame.resize(size, Image.Resampling.LANCZOS).quantize(96) for frame in frames]
    with replacing(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=1000 / GIF_FPS, loop=0
        )
    print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    sys.exit(run_program(main))
