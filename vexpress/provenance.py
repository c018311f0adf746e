"""Marks in a video's file that it is generated, by which model and with which settings.

The mark is plain metadata, which any player shows and any tool can remove. A signed C2PA manifest, which shows whether
a file was changed since, needs the package `c2pa-python`, a certificate and its key.
"""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vexpress.errors import InputError, first_line
from vexpress.files import replacing
from vexpress.options import MotionOptions, SamplingOptions

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's name for media that a trained model made; C2PA uses the same."""
COMPOSITE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""Likewise for media of which a trained model made a part."""
TITLE = "Generated video"


def software() -> str:
    """This package and its version."""
    try:
        return f"vexpress {version('vexpress')}"
    except PackageNotFoundError:  # run from a copy of the source
        return "vexpress"


def video_metadata(
    model_dir: str | os.PathLike,
    options: SamplingOptions,
    motion: MotionOptions | None = None,
    adapters: Sequence[str] = (),
    is_composite: bool = False,
) -> dict[str, str]:
    """The tags of a generated video's file: no date, no path and nothing of the user's files.

    Args:
        model_dir: of the model; its last name is kept.
        options: how the video was sampled.
        motion: how portrait and keypoints were used.
        adapters: `PATH` or `PATH:WEIGHT` each; the last name is kept.
        is_composite: the rest of the picture is as it was; so it is with `paste_back`.
    """
    is_composite = is_composite or (motion is not None and motion.paste_back)
    settings = options.recorded() | ({} if motion is None else motion.recorded())
    facts = {
        "generated": True,
        "digital_source_type": COMPOSITE_TYPE if is_composite else SOURCE_TYPE,
        "software": software(),
        "model": Path(model_dir).resolve().name,
        **({"adapters": [Path(path).name for path in adapters]} if adapters else {}),
        "settings": settings,
    }
    return {"title": TITLE, "comment": json.dumps(facts)}


def read_mark(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What a file's tags say of its making; None without a mark of ours."""
    try:
        facts = json.loads(metadata.get("comment", ""))
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and facts.get("generated") is True else None


def check_signing(certificate: str | os.PathLike | None, key: str | os.PathLike | None) -> None:
    """Finds out before the work begins whether `sign_video` can sign.

    Raises:
        InputError: one is given without the other, a file is not there, or the package is missing.
    """
    if certificate is None and key is None:
        return
    for field, path in (("c2pa_certificate", certificate), ("c2pa_key", key)):
        if path is None:
            raise InputError("is missing: signing needs a certificate and its key", field)
        if not Path(path).is_file():
            raise InputError("is no file", field, path)
    if importlib.util.find_spec("c2pa") is None:
        raise InputError("signing needs the package c2pa-python: pip install c2pa-python", "c2pa_key")


def sign_video(path: str | os.PathLike, certificate: str | os.PathLike, key: str | os.PathLike) -> None:
    """Adds a signed C2PA manifest to a video that is there; needs `c2pa-python`.

    Args:
        path: MP4 file; replaced as a whole.
        certificate: PEM file of the certificate chain.
        key: PEM file of the private key, of an elliptic curve (ES256).

    Raises:
        InputError: the package is missing, or certificate and key do not work.
    """
    check_signing(certificate, key)
    import c2pa

    try:
        signer_info = c2pa.C2paSignerInfo(b"es256", Path(certificate).read_bytes(), Path(key).read_bytes(), None)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", "c2pa_key", error.filename) from error
    action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": {"name": software()}}
    manifest = {
        "claim_generator_info": [{"name": "vexpress"}],
        "title": TITLE,
        "format": "video/mp4",
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    try:
        with replacing(path) as temporary:
            signer = c2pa.Signer.from_info(signer_info)
            c2pa.Builder(json.dumps(manifest)).sign_file(os.fspath(path), os.fspath(temporary), signer)
    except c2pa.C2paError as error:
        raise InputError(f"certificate and key do not sign ({first_line(error)})", "c2pa_key", key) from error
