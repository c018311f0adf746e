"""Encodes the sound of clips that are cut already, and writes the hidden states as training reads them.

vexpress extract-audio-embeddings --video_path clip.mp4 --save_path audio_embeds.safetensors
vexpress extract-audio-embeddings --input_dir clips --save_meta_path clips/metadata.json
"""

from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli import clip_arguments
from vexpress.cli.program import set_up_logging
from vexpress.model_folder import LAYOUT

if TYPE_CHECKING:
    from vexpress.data.formats import ClipRecord


def main(arguments: list[str] | None = None) -> None:
    """Clips -> audio hidden states.

    Args:
        arguments: of the command line; None reads sys.argv.
    """
    parser = clip_arguments.build_parser(__doc__.splitlines()[0], "audio_encoder_path")
    args = parser.parse_args(arguments)
    set_up_logging()
    from vexpress.audio_encoders import describe_encoder
    from vexpress.data.formats import AUDIO_EMBEDS_SUFFIXES, save_audio_embeds
    from vexpress.devices import resolve_device
    from vexpress.prepare.extract import extract_audio_embeds
    from vexpress.weights import load_audio_encoder

    model_dir = args.audio_encoder_path or args.model_dir / LAYOUT["audio_encoder_path"]
    records = clip_arguments.find_clips(args, "audio_embeds", AUDIO_EMBEDS_SUFFIXES, model_dir)
    encoder, processor = load_audio_encoder(model_dir, device=resolve_device(args.device, args.gpu_id))
    made_by = describe_encoder(encoder, processor)

    def extract(record: "ClipRecord", save_path: Path) -> None:
        field = clip_arguments.given_field(args)
        states = extract_audio_embeds(record.audio or record.video, encoder, processor, field)
        save_audio_embeds(save_path, states, made_by)

    clip_arguments.extract_all(args, records, "audio_embeds", extract)
