"""Trains one stage.

    vexpress train --config training_configs/stage_1.yaml [key=value ...]

The same command resumes where the run was cut off. Several processes: train_stage.sh.
"""

import argparse
import logging
import signal
import sys
from functools import partial

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import set_up_logging

EXIT_TERMINATED = 128 + signal.SIGTERM


def build_parser() -> ArgumentParser:
    """The flags; all settings of a run are in its configuration."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, e.g. training_configs/stage_1.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="key=value", help="changes to the configuration")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Configuration -> training."""
    args = build_parser().parse_args(arguments)

    from vexpress.devices import process_number
    from vexpress.training.config_file import load_config
    from vexpress.training.setup import describe_plan
    from vexpress.training.trainer import Trainer

    is_main = process_number("RANK", 0) == 0
    set_up_logging(logging.INFO if is_main else logging.ERROR)
    config = load_config(args.config, args.overrides)
    if args.dry_run:
        print(describe_plan(config))
        return
    on_validation = None
    if config.validation.num_frames:
        from vexpress.evaluation.validation_video import write_validation_video

        on_validation = partial(write_validation_video, config)
    trainer = Trainer(config, on_validation)
    trainer.train()
    if is_main:
        print(f"{config.output_dir}: step {trainer.step} of {config.solver.max_train_steps}, model in export/")
    if trainer.step < config.solver.max_train_steps:  # stopped by SIGTERM; what follows must not take it for done
        sys.exit(EXIT_TERMINATED)
