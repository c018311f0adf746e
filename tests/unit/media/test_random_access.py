from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import encode_video, make_frame, shown_index
from vexpress.errors import InputError
from vexpress.media import random_access as decode
from vexpress.media.random_access import count_frames, read_frames_at
from vexpress.media.video import read_frames

TRAINING_CLIP = Path(__file__).parents[4] / "shared" / "samples" / "training_clip"
NUM_FRAMES = 70


def make_frames(num_frames: int = NUM_FRAMES):
    return (make_frame(i) for i in range(num_frames))


@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001)], ids=str)
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("one_keyframe.mp4", "libx264", {"g": "250", "bf": "3"}),
        ("pyramid.mp4", "libx264", {"g": "20", "bf": "5", "x264-params": "b-pyramid=normal"}),
        ("open_gop.mkv", "libx264", {"g": "20", "bf": "3", "x264-params": "open-gop=1"}),
        ("no_b_frames.mov", "libx264", {"g": "12", "bf": "0"}),
        ("stream.ts", "libx264", {"g": "20", "bf": "3"}),
        ("vp9.webm", "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
        ("plain.avi", "mpeg4", {}),
    ],
)
def test_any_frames_are_those_of_reading_on_from_the_start(tmp_path, name, codec, options, fps):
    path = encode_video(tmp_path / name, make_frames(), fps, codec, options)
    all_frames = np.stack([frame for _, frame in read_frames(path)])
    assert [shown_index(frame) for frame in all_frames] == list(range(NUM_FRAMES))
    assert count_frames(path) == NUM_FRAMES
    rng = np.random.default_rng(0)
    wanted = [[0], [NUM_FRAMES - 1], [19, 20, 21, 3], [5, 5], *rng.integers(0, NUM_FRAMES, (8, 3)).tolist()]
    for frame_ids in wanted:
        frames = read_frames_at(path, frame_ids)
        assert [shown_index(frame) for frame in frames] == frame_ids
        np.testing.assert_array_equal(frames, all_frames[frame_ids])


def test_few_packets_are_decoded(tmp_path, monkeypatch):
    """From the keyframe before on, and not to the end."""
    path = encode_video(tmp_path / "a.mp4", make_frames(), options={"g": "10", "bf": "0", "x264-params": "scenecut=0"})
    decode_packet, fed = decode._wanted_frames, []

    def counting(codec, packet, wanted):
        if packet is not None:
            fed.append(packet.pts)
        return decode_packet(codec, packet, wanted)

    monkeypatch.setattr(decode, "_wanted_frames", counting)
    assert shown_index(read_frames_at(path, [44])[0]) == 44
    assert len(fed) == 5


def test_frames_that_the_container_cuts_off_do_not_count(tmp_path):
    source = encode_video(tmp_path / "a.mp4", make_frames(), options={"g": "30", "bf": "3"})
    cut = tmp_path / "cut.mp4"
    with av.open(source) as reader, av.open(cut, "w", container_options={"avoid_negative_ts": "disabled"}) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        shift = int(10 / stream.average_rate / stream.time_base)
        for packet in reader.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                writer.mux(packet)
    assert count_frames(cut) == NUM_FRAMES - 10
    assert [shown_index(frame) for frame in read_frames_at(cut, [0, 7, 59])] == [10, 17, 69]


def test_varying_frame_rate(tmp_path):
    times = [index**2 for index in range(30)]
    path = encode_video(tmp_path / "a.mp4", make_frames(30), fps=100, options={"bf": "2"}, times=times)
    assert [shown_index(frame) for frame in read_frames_at(path, [29, 3, 17])] == [29, 3, 17]


def test_frame_beyond_the_end_is_named(tmp_path):
    path = encode_video(tmp_path / "a.mp4", make_frames(12))
    with pytest.raises(InputError, match=r"a\.mp4: frame 12 is needed, but 12 frames"):
        read_frames_at(path, [3, 12])


def test_cut_off_file_gives_what_is_there(tmp_path):
    path = encode_video(tmp_path / "a.mkv", make_frames(), options={"g": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    num_frames = count_frames(path)
    assert 10 < num_frames < 60
    assert shown_index(read_frames_at(path, [9])[0]) == 9


def test_damaged_frames_are_named(tmp_path):
    path = encode_video(tmp_path / "a.mp4", make_frames(40), options={"g": "10", "bf": "0"})
    with av.open(path) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    position, num_bytes = packets[20]
    content[position : position + num_bytes] = b"\xff" * num_bytes
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4: frames \[20\] of 40 are damaged"):
        read_frames_at(path, [20])
    assert shown_index(read_frames_at(path, [19])[0]) == 19


def test_avi_with_b_frames_is_refused_since_its_order_is_lost(tmp_path):
    path = encode_video(tmp_path / "a.avi", make_frames(20), options={"bf": "3"})
    with pytest.raises(InputError, match="convert the video to MP4"):
        count_frames(path)


@pytest.mark.skipif(not TRAINING_CLIP.exists(), reason="the sample training clip is not beside the repository")
def test_real_clip_whose_header_promises_too_much():
    path = TRAINING_CLIP / "clip.mp4"
    with av.open(path) as container:
        assert container.streams.video[0].frames == 62
    all_frames = np.stack([frame for _, frame in read_frames(path)])
    assert count_frames(path) == len(all_frames) == 61
    for frame_ids in ([60], [59, 60, 0], [31, 30, 29]):
        np.testing.assert_array_equal(read_frames_at(path, frame_ids), all_frames[frame_ids])
