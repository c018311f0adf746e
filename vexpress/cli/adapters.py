"""The flags of adapters, for all programs that load a model."""

import argparse


def add_adapter_flags(group: argparse._ActionsContainer) -> None:
    """Adds --lora and --lora_any_base."""
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:WEIGHT]",
        help="adapter, such as `vexpress person` makes, and how much it counts; may be given several times",
    )
    group.add_argument(
        "--lora_any_base", action="store_true", help="take adapters that were trained on another base model, too"
    )


def unused_adapter_flags(args: argparse.Namespace) -> dict[str, str]:
    """Flags of adapters without effect -> why."""
    return {} if args.lora else {"lora_any_base": "without `lora`"}
