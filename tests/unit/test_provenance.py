"""The mark in generated videos."""

import json
import shutil
import subprocess

import av
import numpy as np
import pytest

from vexpress.errors import InputError
from vexpress.media.video import write_video
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.provenance import SOURCE_TYPE, check_signing, read_mark, sign_video, video_metadata


def test_the_mark_is_in_the_file_and_says_how_it_was_made(tmp_path):
    options = SamplingOptions(num_inference_steps=7)
    metadata = video_metadata(tmp_path / "my_model", options, MotionOptions(auto_crop=True))
    write_video(tmp_path / "video.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3, 25, metadata=metadata)
    with av.open(str(tmp_path / "video.mp4")) as container:
        mark = read_mark(container.metadata)
    assert mark["generated"] is True
    assert mark["digital_source_type"] == SOURCE_TYPE
    assert mark["model"] == "my_model"
    assert mark["settings"]["num_inference_steps"] == 7
    assert mark["settings"]["auto_crop"] is True
    assert str(tmp_path) not in json.dumps(mark)


def test_the_same_settings_give_the_same_mark(tmp_path):
    assert video_metadata(tmp_path, SamplingOptions()) == video_metadata(tmp_path, SamplingOptions())


def test_other_files_have_no_mark():
    for metadata in ({}, {"comment": "hello"}, {"comment": "[" * 100_000}, {"comment": '{"generated": "yes"}'}):
        assert read_mark(metadata) is None


def test_signing_needs_both_files(tmp_path):
    check_signing(None, None)
    there = __file__
    for certificate, key, field in (
        (there, None, "c2pa_key"),
        (None, there, "c2pa_certificate"),
        (there, tmp_path / "no", "c2pa_key"),
        (tmp_path, there, "c2pa_certificate"),
    ):
        with pytest.raises(InputError) as error:
            check_signing(certificate, key)
        assert error.value.field == field


KEY = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
EXTENSIONS = (
    "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=emailProtection\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)


def make_certificate(folder):
    """A certificate chain and its key, made for the test."""
    (folder / "extensions").write_text(EXTENSIONS)
    ca = ["-out", "ca.pem", "-addext", "keyUsage=critical,keyCertSign"]
    for command in (
        [*KEY, "-out", "ca.key"],
        ["openssl", "req", "-x509", "-new", "-key", "ca.key", "-days", "3", "-subj", "/CN=CA/O=T", *ca],
        [*KEY, "-out", "ec.key"],
        ["openssl", "pkcs8", "-topk8", "-nocrypt", "-in", "ec.key", "-out", "key.pem"],
        ["openssl", "req", "-new", "-key", "key.pem", "-subj", "/CN=Signer/O=T", "-out", "signer.csr"],
        ["openssl", "x509", "-req", "-in", "signer.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
         "-days", "2", "-extfile", "extensions", "-out", "signer.pem"],
    ):  # fmt: skip
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "chain.pem").write_bytes((folder / "signer.pem").read_bytes() + (folder / "ca.pem").read_bytes())
    return folder / "chain.pem", folder / "key.pem"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_signed_manifest_verifies_and_a_changed_file_does_not(tmp_path):
    c2pa = pytest.importorskip("c2pa", reason="needs c2pa-python")
    path = tmp_path / "video.mp4"
    frames = [np.full((64, 64, 3), 20 * number, np.uint8) for number in range(10)]
    write_video(path, frames, 25, metadata=video_metadata(tmp_path, SamplingOptions()))
    size = path.stat().st_size
    sign_video(path, *make_certificate(tmp_path))
    assert 1000 < path.stat().st_size - size < 20_000

    def report() -> tuple[str, dict]:
        found = json.loads(c2pa.Reader(str(path)).json())
        return found["validation_state"], found["manifests"][found["active_manifest"]]

    state, manifest = report()
    assert state == "Valid"
    assert SOURCE_TYPE in json.dumps(manifest)
    with av.open(str(path)) as container:
        assert read_mark(container.metadata)["generated"] is True
        assert sum(1 for _ in container.decode(video=0)) == 10
    data = bytearray(path.read_bytes())
    data[data.rindex(b"mdat") + 40] ^= 255
    path.write_bytes(bytes(data))
    assert report()[0] == "Invalid"


def test_adapters_are_told_by_name_without_path():
    tags = video_metadata("models/demo", SamplingOptions(), adapters=["/home/anna/anna.safetensors:0.8", "ben"])
    assert json.loads(tags["comment"])["adapters"] == ["anna.safetensors:0.8", "ben"]
    assert "adapters" not in json.loads(video_metadata("models/demo", SamplingOptions())["comment"])
