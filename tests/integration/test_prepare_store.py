"""Preparation from and into an object store gives what it gives on this machine."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.integration.prepare_runs import LIMITS, make_video, write_models
from vexpress.prepare.folder import Preparation, prepare_folder
from vexpress.prepare.settings import PrepareSettings
from vexpress.storage import find_files, to_path

pytest.importorskip("upath", reason="needs universal_pathlib")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A preparation of this machine that has run: two videos that serve, one in a folder, and one that does not."""
    folder = tmp_path_factory.mktemp("local")
    make_video(folder / "raw" / "a.mp4", 4)
    make_video(folder / "raw" / "sub" / "ü b.mp4", 4)
    (folder / "raw" / "broken.mp4").write_bytes(b"no video" * 100)
    models = write_models(folder / "models")
    preparation = Preparation(folder / "raw", folder / "out", PrepareSettings(**LIMITS), *models.values())
    assert prepare_folder(preparation) == (2, {"corrupt": 1})
    return preparation


def contents(folder):
    """Path and bytes of each file of a data set, without where it was made of what."""
    if isinstance(folder, os.PathLike):
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
    else:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in find_files(folder)}
    del files["settings.json"]
    return files


def prepare_in_store(local, url):
    """Copies the videos to the store and prepares there; checks that all is as on this machine, also after a loss."""
    raw, out = to_path(f"{url}/raw"), to_path(f"{url}/out")
    for path in local.input_dir.rglob("*.mp4"):
        target = raw / str(path.relative_to(local.input_dir))
        target.fs.pipe_file(target.path, path.read_bytes())
    preparation = Preparation(raw, out, local.settings, local.insightface_model_path, local.audio_encoder_path)
    assert prepare_folder(preparation) == (2, {"corrupt": 1})
    expected = contents(local.output_dir)
    for name in ("rejected.jsonl", f"clips/{preparation.folder_of(raw / 'broken.mp4').name}/record.json"):
        expected[name] = expected[name].replace(bytes(local.input_dir), str(raw).encode())
    assert contents(out) == expected

    folder = preparation.folder_of(raw / "a.mp4")
    (folder / "record.json").unlink()  # as if the run had been killed before the last file
    kept = preparation.folder_of(raw / "sub" / "ü b.mp4") / "record.json"
    before = kept.fs.info(kept.path)
    assert prepare_folder(preparation) == (2, {"corrupt": 1})
    assert contents(out) == expected
    assert kept.fs.info(kept.path) == before

    raw.fs.pipe_file((raw / "a.json").path, b'{"language": "de"}')
    raw.fs.rm_file((raw / "broken.mp4").path)
    assert prepare_folder(preparation) == (2, {})
    assert kept.fs.info(kept.path) == before
    assert [row.get("language") for row in json.loads(contents(out)["metadata.json"])] == [None, "de"]
    raw.fs.rm_file((raw / "a.json").path)
    assert prepare_folder(preparation) == (2, {})
    return preparation


def test_a_store_in_memory(local):
    prepare_in_store(local, "memory://prepare")


@pytest.mark.long
def test_a_store_that_speaks_s3(local, tmp_path, monkeypatch):
    """moto's server stands for the store; training reads the same samples from it as from this machine."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        deadline = time.monotonic() + 120
        while True:
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
                break
            except Exception:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(1)
        preparation = prepare_in_store(local, "s3://bucket/data set")

        from tests.unit.data.test_dataset import assert_same, make_config
        from vexpress.data.dataset import TalkingFaceDataset
        from vexpress.data.index import write_index

        write_index(local.output_dir / "metadata.json", to_path("s3://bucket/shards/index.parquet"), 2**20)
        changes = {"num_frames": 2, "reference_margin": 1, "train_width": 64, "train_height": 64}
        here = TalkingFaceDataset(make_config(local.output_dir / "metadata.json", **changes), seed=0)
        for url in (f"{preparation.output_dir}/metadata.parquet", "s3://bucket/shards/index.parquet"):
            config = make_config(**changes)
            config.meta_paths = [url]
            there = TalkingFaceDataset(config, seed=0)
            for number in range(4):
                assert_same(there[number] | {"name": None}, here[number] | {"name": None})
    finally:
        process.kill()
        process.wait()
