"""Writes small untrained models in the released layout, to try training and inference where the real ones are not.

    python scripts/make_tiny_models.py --output_dir runs/tiny_cpu/model_ckpts

They make noise, not faces: the audio encoder's hidden states are as wide as wav2vec2-base's (768), all else is small.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.model_folder import LAYOUT
from vexpress.weights import save_frozen_parts

UNET_CONFIG_PATH = Path(__file__).resolve().parents[1] / "training_configs" / "tiny_cpu" / "unet.json"


def main(arguments: list[str] | None = None) -> None:
    """Writes the folder."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="runs/tiny_cpu/model_ckpts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    folder = Path(args.output_dir)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    encoder = Wav2Vec2Model(
        Wav2Vec2Config(
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
            conv_dim=(16,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=16,
        )
    )
    processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    save_frozen_parts(folder, vae, encoder, processor)
    config_path = folder / LAYOUT["unet_config_path"]
    config_path.parent.mkdir(parents=True, exist_ok=True)
    config_path.write_text(json.dumps(json.loads(UNET_CONFIG_PATH.read_text()), indent=2) + "\n")
    print(f"{folder}: tiny image autoencoder, audio encoder and UNet configuration, untrained")


if __name__ == "__main__":
    sys.exit(run_program(main))
