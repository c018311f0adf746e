import logging
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vexpress.errors import InputError
from vexpress.media.keypoints import (
    KpsSequence,
    fit_to_clip,
    load_kps,
    render_v_kps,
    resample,
    retarget,
    save_kps,
)
from vexpress.options import RELEASED_STRATEGIES

DATA = Path(__file__).parents[2] / "data"
SAMPLES = Path(__file__).parents[4] / "shared" / "samples"
FACE = torch.tensor([[40.0, 40.0], [80.0, 42.0], [58.0, 65.0]])


def ramp(num_frames: int) -> torch.Tensor:
    """(f 3 2) keypoints that move by 1 px per frame along x."""
    kps = FACE.repeat(num_frames, 1, 1)
    kps[..., 0] += torch.arange(num_frames)[:, None]
    return kps


# Drawing --------------------------------------------------------------------------------------------------------------
def test_drawing_is_the_released_one_to_the_bit():
    case = np.load(DATA / "kps_images.npz")
    for kps, expected in zip(case["kps"], case["output"]):
        np.testing.assert_array_equal(render_v_kps(kps, int(case["image_height"]), int(case["image_width"])), expected)


def test_each_point_has_its_channel():
    image = render_v_kps(FACE, 100, 120)
    assert image.shape == (100, 120, 3) and image.dtype == np.uint8
    for channel, (x, y) in enumerate(FACE.int().tolist()):
        assert image[y, x].tolist() == [255 * (c == channel) for c in range(3)]


@pytest.mark.parametrize("place", [-500.0, 1e9, -1e9])
def test_points_outside_of_the_frame_are_left_out(place):
    kps = FACE.clone()
    kps[0] = place
    image = render_v_kps(kps, 100, 120)
    assert image[42, 80].tolist() == [0, 255, 0]
    assert not (image[..., 0] == 255).any()


# Resampling and retargeting -------------------------------------------------------------------------------------------
def test_resample_is_the_released_one():
    case = np.load(DATA / "kps_interpolation.npz")
    out = resample(torch.from_numpy(case["kps"]), int(case["num_frames"]))
    torch.testing.assert_close(out, torch.from_numpy(case["output"]))


@pytest.mark.parametrize("strategy", ["offset_retarget", "naive_retarget"])
def test_retarget_gives_the_recorded_numbers(strategy):
    case = np.load(DATA / "retarget.npz")
    out = retarget(torch.from_numpy(case["target_kps"]), torch.from_numpy(case["reference_kps"]).double(), strategy)
    torch.testing.assert_close(out, torch.from_numpy(case[strategy]), rtol=1e-6, atol=0)


def test_offset_retarget_follows_the_driving_nose_at_half_amplitude():
    out = retarget(ramp(5), FACE + 30, "offset_retarget")  # a face of the same size
    torch.testing.assert_close(out, FACE + 30 + 0.5 * (ramp(5) - FACE))


def test_naive_retarget_of_a_larger_face_moves_more():
    out = retarget(ramp(5), 2 * FACE, "naive_retarget")
    torch.testing.assert_close(out, 2 * ramp(5))


def test_fix_face_and_no_retarget():
    assert torch.equal(retarget(ramp(5), FACE + 30, "fix_face"), (FACE + 30).expand(5, 3, 2))
    assert torch.equal(retarget(ramp(5), None, "no_retarget"), ramp(5))


def test_retarget_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="^retarget_strategy=magic: allowed are fix_face"):
        retarget(ramp(5), FACE, "magic")
    for strategy in set(RELEASED_STRATEGIES) - {"no_retarget"}:
        with pytest.raises(InputError, match="needs a face"):
            retarget(ramp(5), None, strategy)
    point, line = torch.full((3, 2), 7.0), torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 0.0]])
    for degenerate in (point, line):
        for target, reference in ((ramp(5), degenerate), (degenerate.repeat(5, 1, 1), FACE)):
            with pytest.raises(InputError, match="no size"):
                retarget(target, reference, "naive_retarget")


# Files ----------------------------------------------------------------------------------------------------------------
def test_the_same_keypoints_make_the_same_file(tmp_path):
    for i in range(8):
        save_kps(tmp_path / f"{i}.safetensors", KpsSequence(ramp(3), 25.0, 64, 48))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("facts", [(29.97, 512, 640), (None, None, None)])
def test_our_files_keep_rate_and_size(tmp_path, suffix, facts):
    save_kps(tmp_path / f"kps{suffix}", KpsSequence(ramp(4), *facts))
    loaded = load_kps(tmp_path / f"kps{suffix}")
    assert torch.equal(loaded.kps, ramp(4)) and (loaded.fps, loaded.height, loaded.width) == facts
    assert os.listdir(tmp_path) == [f"kps{suffix}"]


def test_released_format_is_a_list_of_arrays(tmp_path):
    save_kps(tmp_path / "kps.pth", KpsSequence(ramp(4), 25.0, 512, 512))
    content = torch.load(tmp_path / "kps.pth", weights_only=False)  # as the released scripts read it
    assert [(type(frame), frame.dtype, frame.shape) for frame in content] == [(np.ndarray, np.float32, (3, 2))] * 4
    loaded = load_kps(tmp_path / "kps.pth")
    assert torch.equal(loaded.kps, ramp(4)) and loaded.fps is None and loaded.height is None


@pytest.mark.parametrize("content", [ramp(3), ramp(3).double().numpy(), ramp(3).tolist(), list(ramp(3))])
def test_pth_of_other_arrays(tmp_path, content):
    torch.save(content, tmp_path / "kps.pt")
    loaded = load_kps(tmp_path / "kps.pt").kps
    assert torch.equal(loaded, ramp(3)) and loaded.dtype == torch.float32


@pytest.mark.parametrize("core", ["core", "_core"])
def test_pth_of_old_and_new_numpy(tmp_path, monkeypatch, core):
    """numpy 1 pickles its arrays by another module name than numpy 2."""
    reconstruct = np.empty(0).__reduce__()[0]
    monkeypatch.setattr(reconstruct, "__module__", f"numpy.{core}.multiarray")
    torch.save(list(ramp(3).numpy()), tmp_path / "kps.pth")
    assert f"numpy.{core}.multiarray".encode() in (tmp_path / "kps.pth").read_bytes()
    assert torch.equal(load_kps(tmp_path / "kps.pth").kps, ramp(3))


@pytest.mark.skipif(not SAMPLES.exists(), reason=f"no sample clips in {SAMPLES}")
def test_sample_files_load():
    assert load_kps(SAMPLES / "clip_a" / "kps.pth").kps.shape == (109, 3, 2)
    assert load_kps(SAMPLES / "clip_c" / "long_kps.pth").kps.shape == (2700, 3, 2)


def nested(depth: int) -> list:
    """A list that is small in a file and of 2 ** depth numbers when followed."""
    value = [1.0, 2.0]
    for _ in range(depth):
        value = [value, value]
    return [value]


class Malicious:
    def __init__(self, function, argument):
        self.call = (function, (argument,))

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, function):
    victim = tmp_path / "victim"
    argument = str(victim) if function is os.mkdir else f"__import__('os').mkdir({str(victim)!r})"
    path = tmp_path / "kps.pth"
    torch.save([Malicious(function, argument)], path)
    with pytest.raises(InputError, match="kps.pth: refused"):
        load_kps(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the file is a real attack
    assert victim.exists()


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "kps.npz", kps=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="damaged or holds no keypoints"):
        load_kps(tmp_path / "kps.npz")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_input_errors(tmp_path):
    for suffix in (".pth", ".npz", ".safetensors"):
        path = tmp_path / f"kps{suffix}"
        save_kps(path, KpsSequence(ramp(40), 25.0, 512, 512))
        content = path.read_bytes()
        for damaged in (b"", b"hello, world", content[: len(content) // 2], pickle.dumps([1])):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=f"kps{suffix}: is damaged or holds no keypoints"):
                load_kps(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds 0 frames"),
        ([np.zeros((4, 2), np.float32)], r"shapes \[\(4, 2\)\]"),
        (torch.zeros(4, 2, 3, 2), r"shapes \[\(2, 3, 2\)\]"),
        (torch.zeros(0, 3, 2), "holds 0 frames"),
        (torch.zeros(3, 2).expand(10**9, 3, 2), r"an array of shape \(1000000000, 3, 2\)"),
        (torch.zeros(4, 3, 2).to_sparse(), "not an array of numbers"),
        (torch.zeros(4, 3, 2, dtype=torch.complex64), "not an array of numbers"),
        ([None, FACE], "a frame is of type NoneType"),
        ({"points": FACE}, "nothing in it is called kps or keypoints"),
        ({}, "nothing in it is called kps"),
        ("text", "str is no sequence"),
        ([np.zeros((3, 2)), np.zeros((2, 2))], r"shapes \[\(2, 2\), \(3, 2\)\]"),
        (torch.zeros(4, 3), r"shapes \[\(3,\)\]"),
        ({"kps": 1}, "holds no keypoints"),
        (nested(40), "holds no keypoints that can be read"),
        ([FACE, FACE * float("nan")], "keypoints of frame 1 are not finite"),
        ([FACE * float("inf")], "keypoints of frame 0 are not finite"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "kps.pth")
    with pytest.raises(InputError, match=message):
        load_kps(tmp_path / "kps.pth")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", ">f4", "longdouble"])
@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_any_type_of_numbers_is_read(tmp_path, dtype, suffix):
    kps = (ramp(4).numpy() % 100).astype(dtype)
    if suffix == ".npz":
        np.savez(tmp_path / "kps.npz", kps=kps)
    else:
        torch.save(list(kps), tmp_path / "kps.pth")
    torch.testing.assert_close(load_kps(tmp_path / f"kps{suffix}").kps, ramp(4) % 100, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_any_type_of_tensor_is_read(tmp_path, dtype, suffix):
    path = tmp_path / f"kps{suffix}"
    kps = (ramp(4) % 100).to(dtype)
    save_file({"kps": kps}, path) if suffix == ".safetensors" else torch.save(kps, path)
    assert torch.equal(load_kps(path).kps, kps.float())


@pytest.mark.parametrize(
    "change",
    [
        lambda kps: kps[:, None],
        lambda kps: kps[:, None, None],
        lambda kps: list(kps[:, None]),
        lambda kps: [[frame.tolist()] for frame in kps],
        lambda kps: tuple(kps),
        lambda kps: np.concatenate([kps, kps[:, :2]], axis=1),
        lambda kps: [torch.from_numpy(np.concatenate([frame, frame[:2] + 9])) for frame in kps],
        lambda kps: {"kps": kps},
        lambda kps: {"keypoints": list(kps), "fps": 25.0, "width": 512, "height": None, "name": "x"},
        lambda kps: dict(enumerate(kps)),
        lambda kps: {10 + i: torch.from_numpy(frame)[None] for i, frame in reversed(list(enumerate(kps)))},
    ],
)
def test_keypoints_in_other_shapes_are_read_as_what_they_are(tmp_path, change):
    content = change(ramp(6).numpy())
    torch.save(content, tmp_path / "kps.pth")
    loaded = load_kps(tmp_path / "kps.pth")
    assert torch.equal(loaded.kps, ramp(6))
    assert (loaded.fps, loaded.width) == (
        (25.0, 512) if isinstance(content, dict) and "fps" in content else (None, None)
    )


def test_a_single_frame_is_read(tmp_path):
    for frame in (FACE, FACE.numpy(), torch.cat([FACE, FACE[:2]])):
        torch.save(frame, tmp_path / "kps.pth")
        assert torch.equal(load_kps(tmp_path / "kps.pth").kps, FACE[None])


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_zip_bombs_are_refused_without_being_unpacked(tmp_path, suffix):
    path = tmp_path / f"kps{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("kps.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match="unpacks to 300 MiB"):
        load_kps(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_wrong_rates_and_keys_are_named(tmp_path):
    for facts in ({"fps": 1e-300}, {"fps": 1e300}, {"width": 1e30}):
        np.savez(tmp_path / "kps.npz", kps=ramp(3).numpy(), **facts)
        with pytest.raises(InputError, match="must be positive and sensible"):
            load_kps(tmp_path / "kps.npz")
    for facts in ({"fps": 0.0}, {"fps": -25.0}, {"fps": float("nan")}, {"height": 0}):
        np.savez(tmp_path / "kps.npz", kps=ramp(3).numpy(), **facts)
        with pytest.raises(InputError, match="must be positive"):
            load_kps(tmp_path / "kps.npz")
    save_file({"points": ramp(3)}, tmp_path / "kps.safetensors")
    with pytest.raises(InputError, match="holds no keypoints"):
        load_kps(tmp_path / "kps.safetensors")


def test_wrong_paths_are_named(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    for name, message in (("absent.pth", "does not exist"), ("folder.pth", "is a folder"), ("kps.txt", "end in .pth")):
        with pytest.raises(InputError, match=f"^kps_path=.*{name}: .*{message}"):
            load_kps(tmp_path / name)
    with pytest.raises(InputError, match="^kps_sequence_save_path=.*kps.txt: .*end in .pth"):
        save_kps(tmp_path / "kps.txt", KpsSequence(ramp(3)))


# Fitting to a clip ----------------------------------------------------------------------------------------------------
def fitted_x(sequence: KpsSequence, num_frames: int, fps: float = 30, extend: str = "loop") -> list[float]:
    """The left eye's movement along x in the fitted sequence."""
    fitted = fit_to_clip(sequence, num_frames, fps, 512, 512, extend)
    assert fitted.shape == (num_frames, 3, 2) and fitted.dtype == torch.float32
    return (fitted[:, 0, 0] - FACE[0, 0]).tolist()


def test_longer_sequences_are_cut():
    assert fitted_x(KpsSequence(ramp(10)), 3) == [0, 1, 2]


def test_shorter_sequences_are_extended(caplog):
    caplog.set_level(logging.INFO)
    assert fitted_x(KpsSequence(ramp(4)), 10) == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert "4 of 10 frames" in caplog.text
    assert fitted_x(KpsSequence(ramp(2)), 5) == [0, 1, 0, 1, 0]
    assert fitted_x(KpsSequence(ramp(1)), 3) == [0, 0, 0]
    assert fitted_x(KpsSequence(ramp(4)), 6, extend="hold") == [0, 1, 2, 3, 3, 3]
    stretched = fitted_x(KpsSequence(ramp(4)), 8, extend="stretch")
    assert stretched == pytest.approx((resample(ramp(4), 8)[:, 0, 0] - FACE[0, 0]).tolist())
    assert stretched == sorted(stretched) and stretched[-1] == 3


def test_sequences_that_fit_are_left_alone(caplog):
    caplog.set_level(logging.INFO)
    assert fitted_x(KpsSequence(ramp(6), 25.0, 512, 512), 6, fps=25) == [0, 1, 2, 3, 4, 5]
    assert not caplog.records


def test_the_frame_rate_is_converted_by_time():
    assert fitted_x(KpsSequence(ramp(4), fps=15.0), 6) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert fitted_x(KpsSequence(ramp(8), fps=60.0), 4) == [0, 2, 4, 6]
    assert fitted_x(KpsSequence(ramp(26), fps=25.0), 31)[-1] == pytest.approx(25)  # one second is one second
    assert fitted_x(KpsSequence(ramp(3), fps=15.0), 6) == [0, 0.5, 1, 1.5, 2, 2]  # the last frame has its own time
    assert fitted_x(KpsSequence(ramp(3), fps=15.0), 10) == [0, 0.5, 1, 1.5, 2, 1.5, 1, 0.5, 0, 0.5]
    assert fitted_x(KpsSequence(ramp(1), fps=7.0), 3) == [0, 0, 0]


def test_the_frame_size_is_converted():
    fitted = fit_to_clip(KpsSequence(ramp(3), height=256, width=128), 3, 30, 512, 512)
    torch.testing.assert_close(fitted, ramp(3) * torch.tensor([4.0, 2.0]))


def test_points_outside_of_the_picture_are_warned_about(caplog):
    fit_to_clip(KpsSequence(ramp(20)), 20, 30, 512, 98)  # the right eye leaves in the last frame
    assert not caplog.records
    fit_to_clip(KpsSequence(ramp(20)), 20, 30, 512, 96)
    assert "15% of the frames" in caplog.text and "`image_width` x `image_height`, here 96 x 512" in caplog.text


def test_unknown_extension_is_named():
    with pytest.raises(InputError, match="^kps_extend=repeat: allowed are loop, stretch, hold"):
        fit_to_clip(KpsSequence(ramp(3)), 9, 30, 512, 512, "repeat")


def test_points_far_away_are_refused_by_their_frame(tmp_path):
    torch.save([FACE, FACE * 1e30], tmp_path / "kps.pth")
    with pytest.raises(InputError, match=r"a keypoint of frame 1 is \S+ px from 0, allowed are 100000 px"):
        load_kps(tmp_path / "kps.pth")


def test_frames_that_are_large_without_holding_anything_are_refused_before_they_are_copied(tmp_path, monkeypatch):
    torch.save([torch.zeros(1, dtype=torch.float16).expand(10**9)] * 1000, tmp_path / "kps.pth")
    monkeypatch.setattr(torch.Tensor, "to", None)
    with pytest.raises(InputError, match=r"an array of shape \(1000000000,\)"):
        load_kps(tmp_path / "kps.pth")


def test_an_array_that_is_no_archive_is_bounded_too(tmp_path):
    np.save(tmp_path / "kps.npy", np.zeros((1, 3, 2), np.float32))
    path = (tmp_path / "kps.npy").rename(tmp_path / "kps.npz")
    os.truncate(path, 2**29)
    with pytest.raises(InputError, match="unpacks to 512 MiB"):
        load_kps(path)
