"""Puts the demo pack together: networks in half precision, examples, held-out clips; then checks its size.

    python -m scripts.demo.assemble_pack --work_dir runs/demo --pack_dir vexpress/demo_pack

`--work_dir` is what build_demo_pack.sh has filled. The driving keypoints come from the pack's own face networks.
"""

import json
import logging
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scripts.demo.compact_onnx import write_compact
from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import mouth_from_speech, random_motion, random_person
from scripts.demo.make_drawn_dataset import speak
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.errors import InputError
from vexpress.files import read_json, replacing
from vexpress.media.audio import WAV2VEC2_RATE_HZ, Audio
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.keypoints import KpsSequence, save_kps
from vexpress.media.video import read_frames, write_video
from vexpress.model_folder import INFERENCE_DEFAULTS, LAYOUT, ModelPaths
from vexpress.weights import load_audio_encoder, load_networks, load_vae, save_frozen_parts, save_networks

logger = logging.getLogger("assemble_pack")

MOST_BYTES = 25 * 10**6
PACK_FPS, PACK_PX = 30, 128
PACK_SAMPLING = {
    "image_width": PACK_PX,
    "image_height": PACK_PX,
    "fps": float(PACK_FPS),
    "context_overlap": 6,  # windows join less visibly than with 2 or 4, by clips of heldout_choice
    "crop_scale": 2.0,  # as drawn_faces places faces in a picture
    "crop_face_height": 0.61,
    "reference_attention_weight": 1.0,
    "audio_attention_weight": 1.0,
    "median_filter": False,
    "denoise_threshold": 0.0,  # which would still small motion, too
}
"""Put over what stage 4 says of its student."""
SPEECH = ("Hello! I am a drawn face, and I say whatever I hear.", "en", "f4", 55, 145)
DRIVING_SPEECH = ("We turn our heads a little while we talk to one another, and sometimes we nod.", "en", "m7", 45, 160)
PORTRAIT_SEED, DRIVER_SEED = 20_001, 20_002  # people whom no training shows


def write_examples(folder: Path, face_models: Path) -> None:
    """A portrait, speech, and a driving clip of someone else with its keypoints as the face networks find them."""
    folder.mkdir(parents=True, exist_ok=True)
    pause = np.zeros(int(0.25 * WAV2VEC2_RATE_HZ), np.float32)
    write_wav(folder / "speech.wav", np.concatenate([pause, speak(*SPEECH), pause]))
    rng = np.random.default_rng(PORTRAIT_SEED)
    person, motion = random_person(rng), random_motion(rng, 1, PACK_FPS, amount=0)
    Image.fromarray(render_frame(person, motion.row(0), np.array([0.0, 0.5]), PACK_PX).pixels).save(
        folder / "portrait.png", optimize=True
    )

    rng = np.random.default_rng(DRIVER_SEED)
    waveform = speak(*DRIVING_SPEECH)
    num_frames = round(len(waveform) / WAV2VEC2_RATE_HZ * PACK_FPS)
    person, motion = random_person(rng), random_motion(rng, num_frames, PACK_FPS)
    mouth = mouth_from_speech(waveform, WAV2VEC2_RATE_HZ, num_frames, PACK_FPS)
    frames = [render_frame(person, motion.row(i), mouth[i], PACK_PX).pixels for i in range(num_frames)]
    write_video(folder / "driving.mp4", frames, PACK_FPS, Audio(waveform[None], WAV2VEC2_RATE_HZ))
    analyzer = FaceAnalyzer(face_models, torch.device("cpu"))
    decoded = [frame for _, frame in read_frames(folder / "driving.mp4")]
    found = [analyzer.detect(frame) for frame in decoded]
    if bad := [number for number, faces in enumerate(found) if len(faces) != 1]:
        raise InputError(f"driving.mp4: no face or several in frames {bad}; the face networks are not good enough")
    kps = torch.from_numpy(np.stack([face.v_kps for [face] in found])).float()
    save_kps(folder / "driving_kps.npz", KpsSequence(kps, PACK_FPS, PACK_PX, PACK_PX))


def write_wav(path: Path, waveform: np.ndarray) -> None:
    """Writes (n) float32 in -1..1 at 16 kHz as 16-bit PCM."""
    with replacing(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(WAV2VEC2_RATE_HZ)
        file.writeframes((waveform / np.abs(waveform).max() * 0.9 * 32767).astype("<i2").tobytes())


def main(arguments: list[str] | None = None) -> None:
    """Writes the pack."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--pack_dir", type=Path, required=True)
    args = parser.parse_args(arguments)
    set_up_logging()
    work, pack = args.work_dir, args.pack_dir

    # 1. networks
    student = work / "stage_4" / "export"
    save_networks(pack, **load_networks(ModelPaths.from_model_dir(student)), dtype=torch.float16)
    for file in (work / "head_motion" / "export" / "v-express").glob("head_motion.*"):
        shutil.copy2(file, pack / "v-express")
    vae = load_vae(work / "vae" / "final", torch.float16)
    save_frozen_parts(pack, vae, *load_audio_encoder(work / "audio_encoder", torch.float16))
    sampling = read_json(student / INFERENCE_DEFAULTS) | PACK_SAMPLING
    (pack / INFERENCE_DEFAULTS).write_text(json.dumps(sampling, indent=1) + "\n")
    face_models = pack / LAYOUT["insightface_model_path"]
    for source in (work / "insightface_models").rglob("*.onnx"):
        target = face_models / source.relative_to(work / "insightface_models")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_compact(source, target)
    ignored = shutil.ignore_patterns("states", "report.json")
    shutil.copytree(work / "evaluation_networks", pack / "evaluation", dirs_exist_ok=True, ignore=ignored)

    # 2. examples and held-out clips
    write_examples(pack / "examples", face_models)
    shutil.copytree(work / "heldout_pack", pack / "heldout", dirs_exist_ok=True)

    num_bytes = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
    if num_bytes > MOST_BYTES:
        raise InputError(f"{pack} has {num_bytes / 1e6:.1f} MB, allowed are {MOST_BYTES / 1e6:.0f}: make it smaller")
    print(f"{pack}: {num_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run_program(main))
