from __future__ import annotations

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.records import FEATURE_TYPES, FeatureType, decode_record, encode_record
from tests.corpora import random_record


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
@pytest.mark.parametrize("regions", [1, 2, 7])
def test_round_trip(feature_type: FeatureType, regions: int) -> None:
    record = random_record(np.random.default_rng(1), regions)
    back = decode_record(encode_record(record, feature_type), "here")
    np.testing.assert_array_equal(back.boxes, record.boxes)
    np.testing.assert_array_equal(back.classes, record.classes)
    np.testing.assert_array_equal(back.confidences, record.confidences)
    assert (back.width, back.height) == (record.width, record.height)
    # Half a step of the quantiser, of half precision, or nothing.
    largest = np.abs(record.features).max(axis=1, keepdims=True)
    bound = {"int8": largest / 254 * 1.001, "float16": largest * 2**-11, "float32": 0 * largest}[feature_type]
    assert (np.abs(back.dequantized() - record.features) <= bound).all()


def test_a_region_of_zeros_stays_zeros() -> None:
    record = random_record(np.random.default_rng(1), 2)
    record.features[1] = 0
    assert not decode_record(encode_record(record, "int8"), "here").dequantized()[1].any()


def test_every_flipped_byte_and_every_truncation_is_noticed() -> None:
    data = encode_record(random_record(np.random.default_rng(2), 3), "int8")
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        with pytest.raises(UsageError, match="record 'x'"):
            decode_record(bytes(damaged), "record 'x'")
        with pytest.raises(UsageError, match="truncated"):
            decode_record(data[:at], "record 'x'")
