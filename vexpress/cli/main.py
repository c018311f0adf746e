"""The `vexpress` command: one subcommand per program. Nothing heavy is imported before a program is chosen."""

import importlib
import sys

from vexpress.cli.program import run_program
from vexpress.errors import InputError

PROGRAMS = {
    "generate": ("generate", "make a talking video from a portrait and speech"),
    "dub": ("dub", "have the people of a video speak another speech"),
    "extract-kps": ("extract_kps", "extract keypoints and sound of a driving video"),
    "download": ("download", "fetch the released models"),
    "prepare": ("prepare", "make a training data set of a folder of videos"),
    "data report": ("data_report", "make a page about a prepared data set"),
    "verify": ("verify", "check every clip of a prepared data set"),
    "extract-face-info": ("extract_face_info", "find the face in each frame of clips"),
    "extract-audio-embeddings": ("extract_audio_embeddings", "encode the sound of clips"),
    "index": ("index", "index a data set for training at scale, or pack it into tar shards"),
    "cache-latents": ("cache_latents", "encode the frames of clips ahead of training"),
    "train": ("train", "train one stage"),
    "person": ("person", "make an adapter of one person from a video of them"),
    "train-motion": ("train_motion", "train the network that makes a head move to speech"),
    "evaluate": ("evaluate", "measure generated videos in the paper's metrics"),
    "serve": ("serve", "serve a page and an API that make talking videos"),
    "benchmark": ("benchmark", "measure speed and memory"),
}
"""Subcommand -> module of `vexpress.cli`, and what it does."""


def usage() -> str:
    """The subcommands, a line each."""
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in PROGRAMS.items()]
    return "\n".join(["usage: vexpress PROGRAM [flags]", "", *lines, "", "vexpress PROGRAM --help lists its flags"])


def dispatch() -> None:
    """Runs the program that the first argument names, with the rest."""
    name, *rest = sys.argv[1:] or ["--help"]
    if rest and f"{name} {rest[0]}" in PROGRAMS:
        name = f"{name} {rest.pop(0)}"
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in PROGRAMS:
        raise InputError(f"no program is called {name}; there are {', '.join(PROGRAMS)}")
    sys.argv[:] = [f"vexpress {name}", *rest]
    importlib.import_module(f"vexpress.cli.{PROGRAMS[name][0]}").main()


def main() -> int:
    """The command's entry point; returns its exit code."""
    return run_program(dispatch)
