"""Small training runs: their configuration, and starting, stopping and comparing them."""

import subprocess
import sys
import time
from pathlib import Path

import safetensors.torch
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from omegaconf import OmegaConf

from vexpress.cli import train
from vexpress.cli.program import run_program
from vexpress.training.config_file import load_config
from vexpress.training.trainer import Trainer

ROOT = Path(__file__).parents[1]


def write_config(folder: Path, model_dir: Path, meta_path: Path) -> Path:
    """Stage 3 from the tiny model: 2 samples of 2 frames, 2 updates; `folder`/run is the output."""
    settings = {
        "train_stage": "stage_3",
        "output_dir": str(folder / "run"),
        "vae_model_path": str(model_dir / "sd-vae-ft-mse"),
        "audio_model_path": str(model_dir / "wav2vec2-base-960h"),
        "checkpointing_steps": 2,
        "log_steps": 1,
        "tracker": None,
        "init": {"source": "stage", "path": str(model_dir)},
        "data": {
            "meta_paths": [str(meta_path)],
            "train_width": 64,
            "train_height": 64,
            "train_bs": 2,
            "num_frames": 2,
            "lip_loss_weight": 100.0,
            "kps_drop_rate": 0.5,
            "reference_drop_rate": 0.2,
            "flip_rate": 0.5,
            "num_workers": 0,
        },
        "solver": {"max_train_steps": 2, "learning_rate": 1e-4},
        "validation": {"steps": 0},
    }
    path = folder / "config.yaml"
    path.write_text(OmegaConf.to_yaml(settings))
    return path


def forget_run() -> None:
    """Makes the next run of this process a new one: accelerate keeps the state of the first as singletons."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def run(config_path: Path, *overrides: str) -> Trainer:
    forget_run()
    trainer = Trainer(load_config(config_path, overrides))
    trainer.train()
    return trainer


def exported(folder: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for path in sorted((folder / "export" / "v-express").glob("*.safetensors")):
        weights |= {f"{path.stem}.{name}": tensor for name, tensor in safetensors.torch.load_file(path).items()}
    return weights


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:5]


def largest_difference(first: dict, second: dict) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def start(config_path: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config_path), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.time() + 180
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    assert path.exists(), process.communicate(timeout=10)[0]


def error(config_path: Path, capsys, *overrides: str) -> str:
    forget_run()
    capsys.readouterr()
    assert run_program(lambda: train.main(["--config", str(config_path), *overrides])) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
