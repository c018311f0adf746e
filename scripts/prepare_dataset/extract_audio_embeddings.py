#!/usr/bin/env python3
"""Encodes the sound of clips that are cut already, and writes the hidden states as training reads them.

python scripts/prepare_dataset/extract_audio_embeddings.py --video_path clip.mp4 --save_path audio_embeds.safetensors
python scripts/prepare_dataset/extract_audio_embeddings.py --input_dir clips --save_meta_path clips/metadata.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.prepare_dataset import clip_arguments
from vexpress import runtime
from vexpress.checkpoints import LAYOUT, load_audio_encoder
from vexpress.data.extract import extract_audio_embeds
from vexpress.data.formats import AUDIO_EMBEDS_SUFFIXES, ClipRecord, save_audio_embeds


def main() -> None:
    runtime.set_up_logging()
    parser = clip_arguments.build_parser(__doc__.splitlines()[0], "audio_encoder_path", AUDIO_EMBEDS_SUFFIXES)
    args = parser.parse_args()
    clip_arguments.check_arguments(args, AUDIO_EMBEDS_SUFFIXES)
    records = clip_arguments.find_clips(args)
    model_dir = args.audio_encoder_path or args.model_dir / LAYOUT["audio_encoder_path"]
    encoder, processor = load_audio_encoder(model_dir, device=runtime.resolve_device(args.device, args.gpu_id))

    def extract(record: ClipRecord, save_path: Path) -> None:
        embeds = extract_audio_embeds(record.audio or record.video, encoder, processor, clip_arguments.given_flag(args))
        save_audio_embeds(save_path, embeds)

    clip_arguments.extract_all(args, records, "audio_embeds", extract)


if __name__ == "__main__":
    sys.exit(runtime.run_program(main))
