"""Encodes the sound of clips that are cut already, and writes the hidden states as training reads them.

python scripts/prepare_dataset/extract_audio_embeddings.py --video_path clip.mp4 --save_path audio_embeds.safetensors
python scripts/prepare_dataset/extract_audio_embeddings.py --input_dir clips --save_meta_path clips/metadata.json
"""

from pathlib import Path

from vexpress.cli import clip_arguments
from vexpress.data.formats import AUDIO_EMBEDS_SUFFIXES, ClipRecord, save_audio_embeds
from vexpress.devices import resolve_device
from vexpress.logs import set_up_logging
from vexpress.model_folder import LAYOUT
from vexpress.prepare.extract import extract_audio_embeds
from vexpress.weights import load_audio_encoder


def main() -> None:
    set_up_logging()
    parser = clip_arguments.build_parser(__doc__.splitlines()[0], "audio_encoder_path", AUDIO_EMBEDS_SUFFIXES)
    args = parser.parse_args()
    clip_arguments.check_arguments(args, AUDIO_EMBEDS_SUFFIXES)
    records = clip_arguments.find_clips(args)
    model_dir = args.audio_encoder_path or args.model_dir / LAYOUT["audio_encoder_path"]
    encoder, processor = load_audio_encoder(model_dir, device=resolve_device(args.device, args.gpu_id))

    def extract(record: ClipRecord, save_path: Path) -> None:
        embeds = extract_audio_embeds(record.audio or record.video, encoder, processor, clip_arguments.given_flag(args))
        save_audio_embeds(save_path, embeds)

    clip_arguments.extract_all(args, records, "audio_embeds", extract)
