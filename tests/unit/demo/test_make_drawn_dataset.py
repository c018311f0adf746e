import json

import numpy as np

from scripts.demo import make_drawn_dataset
from vexpress.media.audio import WAV2VEC2_RATE_HZ, load_audio
from vexpress.media.video import read_frames


def test_silent_clips_have_closed_mouths_and_little_or_no_noise(tmp_path):
    make_drawn_dataset.main(
        ["--output_dir", str(tmp_path), "--silent", "--num_clips", "6", "--seconds", "0.5", "--size", "64"]
    )
    rows = json.loads((tmp_path / "metadata.json").read_text())
    loudness = []
    for row in rows:
        with np.load(tmp_path / row["labels"]) as labels:
            assert labels["mouth"][:, 0].max() == 0
        frames = [frame for _, frame in read_frames(tmp_path / row["video"])]
        assert len(frames) == row["num_frames"] == 15
        assert any(not np.array_equal(frames[0], frame) for frame in frames[1:])  # heads go on moving
        loudness.append(float(load_audio(tmp_path / row["video"]).resampled_mono(WAV2VEC2_RATE_HZ).std()))
    assert max(loudness) < 2e-3
    assert min(loudness) == 0 < max(loudness)
