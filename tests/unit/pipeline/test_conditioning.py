"""What is remembered of keypoints."""

import torch

from vexpress.pipeline import conditioning
from vexpress.pipeline.conditioning import KpsFeatures


def encoder():
    encoded = []

    def encode(kps):
        encoded.append(len(kps))
        return kps.sum((1, 2))[:, None, None, None] * torch.ones(1, 2, 3, 3)

    return encode, encoded


def frames(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers).float()[:, None, None].expand(-1, 3, 2)


def test_each_kind_is_encoded_once_and_in_its_place():
    encode, encoded = encoder()
    features = KpsFeatures(encode)
    assert features(frames(1, 2, 1))[:, 0, 0, 0].tolist() == [6, 12, 6]
    assert features(frames(2, 3, 3))[:, 0, 0, 0].tolist() == [12, 18, 18]
    assert features(frames(1, 2, 3))[:, 0, 0, 0].tolist() == [6, 12, 18]
    assert encoded == [2, 1]


def test_no_more_is_kept_than_there_is_room(monkeypatch):
    monkeypatch.setattr(conditioning, "MAX_KPS_BYTES", 2 * 4 * 2 * 3 * 3)
    encode, encoded = encoder()
    features = KpsFeatures(encode)
    for _ in range(2):
        assert features(frames(1, 2, 3, 4))[:, 0, 0, 0].tolist() == [6, 12, 18, 24]
    assert encoded == [4, 2]  # the first two stay
    assert len(features._kept) == 2


def test_windows_that_follow_each_other_keep_the_latest():
    encode, encoded = encoder()
    features = KpsFeatures(encode, keeps_latest=True)
    for first in range(0, 40, 2):
        features(frames(*range(first, first + 4)))
        assert len(features._kept) == 4
    assert encoded == [4] + [2] * 19
