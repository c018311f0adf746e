"""Trains the network that makes a head's motion from speech.

vexpress train-motion --config training_configs/motion.yaml [key=value ...]

The same command resumes where the run was cut off.
"""

import argparse

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import set_up_logging


def build_parser() -> ArgumentParser:
    """The flags; all settings of a run are in its configuration."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, e.g. training_configs/motion.yaml")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="key=value", help="changes to the configuration")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Configuration -> training."""
    args = build_parser().parse_args(arguments)
    from pathlib import Path

    from vexpress.training.config_file import load_config
    from vexpress.training.head_motion import HeadMotionConfig, HeadMotionTrainer
    from vexpress.training.run_lock import hold_run_folder

    set_up_logging()
    config = load_config(args.config, args.overrides, HeadMotionConfig)
    with hold_run_folder(Path(config.output_dir)):
        trainer = HeadMotionTrainer(config)
        path = trainer.train()
    print(f"{config.output_dir}: {trainer.step} steps, network in {path}")
