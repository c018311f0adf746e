"""Measures speed and memory on random weights or the demo pack: no downloads. Each benchmark prints a table.

vexpress benchmark unet        # a denoising step, with each of our savings
vexpress benchmark training    # a training step, and beside it the release's
vexpress benchmark autoencoder # encoding and decoding, in both layouts of memory
vexpress benchmark loading     # peak memory of loading the networks; writes up to 12 GB to disk
vexpress benchmark full_run    # the way from waveform to frames, part by part
vexpress benchmark data        # reading training samples
vexpress benchmark index       # a million clips: opening their index, and an epoch's order
vexpress benchmark startup     # the command from its start, and default runs of two checkouts
vexpress benchmark memory      # how it grows with a video's length
vexpress benchmark flops       # arithmetic of a frame with each preset
vexpress benchmark presets     # time of the presets, and how near their frames come to the release's sampling
vexpress benchmark live        # frames per second, latency, and the ratio to playing time
"""

import importlib
from dataclasses import fields

from vexpress.benchmarks.settings import BENCHMARKS
from vexpress.cli.parser import ArgumentParser, add_options
from vexpress.cli.program import set_up_logging


def build_parser() -> ArgumentParser:
    """One subcommand per benchmark, with the options of its settings."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, settings in BENCHMARKS.items():
        summary = settings.__doc__.splitlines()[0]
        add_options(commands.add_parser(name, description=summary, help=summary), fields(settings))
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs one benchmark."""
    values = vars(build_parser().parse_args(arguments))
    name = values.pop("benchmark")
    settings = BENCHMARKS[name](**values)
    module = importlib.import_module(f"vexpress.benchmarks.{name}")
    set_up_logging()  # only now, since diffusers sets its own level when it is imported
    print(module.measure(settings).format())
