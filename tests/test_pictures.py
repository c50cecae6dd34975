"""The one decoder of pictures: what becomes of pixels, and what a bad picture costs (itself)."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagebert.decoder import MAX_SCANS, decode, jpeg_facts, too_many_scans
from imagebert.pictures import LOCAL, SENT, Decoder, UnreadableImage

# A camera's EXIF with orientation 6 whose GPS table says that it has 27,394 entries: Pillow cannot write it again.
MALFORMED_EXIF = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\5\1\x0e\0\2\0\0\0\6\0\0\0J\1\x12\0\3\0\0\0\1\0\6\0\0\1\x1a\0\5\0\0\0\1\0\0\0P\x88%\0\4"
    b"\0\0\0\1\0\0\0X\x90\3\0\2\0\0\0\x14\0\0\0\x8e\0\0\0\0hello\0\0\0\0H\0\0\0\1k\2\0\1\0\2\0\0\0\2N\0\0\0\0\2\0\5\0\0"
    b"\0\3\0\0\0v\0\0\0\0\0\0\0\1\0\0\0\1\0\0\0\2\0\0\0\1\0\0\0\3\0\0\0\x012020:01:01 00:00:00\0"
)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red left half, blue right half."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def many_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again: each costs a pass over all its pixels."""
    last = data.rindex(b"\xff\xda")
    return data[:last] + (scans - data.count(b"\xff\xda") + 1) * data[last:-2] + data[-2:]


def corners(image: Image.Image) -> list[str]:
    pixels = np.asarray(image).astype(int)
    return ["red" if p[0] > p[2] else "blue" for p in (pixels[2, 2], pixels[2, -3], pixels[-3, 2], pixels[-3, -3])]


# ----------------------------------------------------------------------------------------------------------- its pixels


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        (1, (40, 30), ["red", "blue", "red", "blue"]),
        (3, (40, 30), ["blue", "red", "blue", "red"]),
        (6, (30, 40), ["red", "red", "blue", "blue"]),
        (8, (30, 40), ["blue", "blue", "red", "red"]),
    ],
)
def test_exif_rotation(decoder: Decoder, orientation: int, size: tuple[int, int], expected: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decoder.picture(saved(picture(), "JPEG", exif=exif, quality=95), SENT)
    assert (image.mode, image.size, corners(image)) == ("RGB", size, expected)


def test_malformed_exif_is_followed_where_it_can_be_read(decoder: Decoder) -> None:
    data = saved(picture(), "JPEG", exif=MALFORMED_EXIF, quality=95)
    image = decoder.picture(data, SENT)
    assert (image.size, corners(image)) == ((30, 40), ["red", "red", "blue", "blue"])
    with Image.open(io.BytesIO(decoder.thumbnail(data, 20, LOCAL))) as small:
        assert small.size == (15, 20)
    nonsense = saved(picture(), "JPEG", exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + 50 * b"\1\x12", quality=95)
    assert decoder.picture(nonsense, SENT).size == (40, 30)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode(saved(picture().convert(mode), "JPEG" if mode in ("L", "CMYK") else "PNG"), 10**6)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    if mode in ("CMYK", "P", "RGBA"):
        assert corners(image) == ["red", "blue"] * 2


def test_transparent_is_white() -> None:
    """However it is said: by an alpha channel, by a palette's, by a colour."""
    blue = Image.new("RGB", (8, 8), "blue")
    rgba = blue.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.repeat([[0], [255]], 4, axis=0).repeat(8, axis=1).astype(np.uint8)))
    half_white = np.array([255] * 4 + [0] * 4)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        image = decode(saved(rgba, kind, **options), 10**6)
        np.testing.assert_array_equal(np.asarray(image)[:, 3, 0], half_white, kind)
        assert np.asarray(image)[:, 3, 2].min() == 255
    for colour in (blue, blue.convert("L"), blue.convert("P")):
        seen = colour.getpixel((0, 0))
        assert np.asarray(decode(saved(colour, "PNG", transparency=seen), 10**6)).min() == 255, colour.mode
    deep = Image.fromarray(np.full((4, 4), 300, np.uint16))
    assert np.asarray(decode(saved(deep, "PNG", transparency=300), 10**6)).min() == 255


def test_sixteen_bits_are_divided_by_256() -> None:
    values = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    deep = Image.fromarray(values)
    big = saved(Image.frombytes("I;16B", (40, 30), values.astype(">u2").tobytes()), "TIFF")
    assert big[:2] == b"MM"
    for data in (saved(deep, "PNG"), saved(deep, "TIFF"), big):
        np.testing.assert_array_equal(np.asarray(decode(data, 10**6))[..., 1], values // 256)


def test_pixels_of_unknown_range_are_refused() -> None:
    for mode, said in (("F", "floating-point numbers"), ("I", "32-bit or signed integers")):
        with pytest.raises(Exception, match=f"its pixels are {said}.*save it with 8 or 16 bits"):
            decode(saved(Image.new(mode, (4, 4), 1), "TIFF"), 10**6)


def test_of_an_animation_the_first_frame_counts(decoder: Decoder) -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "blue", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(decoder.picture(data, LOCAL))[5, 5].tolist()[::2] == [255, 0] or kind == "GIF"
        assert np.asarray(decoder.picture(data, LOCAL))[5, 5, 0] > 250


def test_small_pictures_are_those_of_the_whole(decoder: Decoder) -> None:
    data = saved(picture(400, 300), "JPEG", quality=95)
    with Image.open(io.BytesIO(decoder.thumbnail(data, 40, SENT))) as small:
        assert (small.size, corners(small)) == ((40, 30), ["red", "blue"] * 2)


# ------------------------------------------------------------------------------------------------- what is not decoded


def test_what_cannot_be_read_says_why(decoder: Decoder) -> None:
    jpeg = saved(picture(), "JPEG")
    for data, limits, message in (
        (b"hello", SENT, "it is none: send a JPEG, PNG or WebP"),
        (b"", SENT, "it is none"),
        (b"hello", LOCAL, "it is not a picture in a known format"),
        (saved(picture(), "TIFF"), SENT, "it is none"),
        (jpeg[: len(jpeg) // 2], LOCAL, "(?i)it is damaged .*truncated"),
        (jpeg, LOCAL._replace(pixels=100), "more pixels than 100, 40 x 30"),
        (saved(Image.new("1", (5010, 5010)), "PNG"), SENT, "more pixels than 25,000,000"),
        (saved(Image.new("1", (70_000, 2)), "PNG"), SENT, "it is longer than 65,500 pixels"),
        (many_scans(saved(picture(), "JPEG", progressive=True), 150), SENT, "more than 100 scans"),
    ):
        with pytest.raises(UnreadableImage, match=message):
            decoder.picture(data, limits)
    assert len(decoder._idle) == 1  # it outlived them all
    decoder.picture(many_scans(saved(picture(), "JPEG", progressive=True), 90), SENT)


def test_scans_are_counted_in_the_picture_only() -> None:
    """A phone's moving picture has a film behind its end, and a preview is a JPEG in a JPEG's notes."""
    jpeg = saved(picture(), "JPEG")
    film = jpeg + 500 * b"\xff\xda\0\4??"
    note = jpeg[:2] + b"\xff\xe1\x07\xd2" + 1000 * b"\xff\xda" + jpeg[2:]
    assert not too_many_scans(film)
    assert not too_many_scans(note)
    assert too_many_scans(many_scans(saved(picture(), "JPEG", progressive=True), MAX_SCANS + 1))
    facts = jpeg_facts(note)
    assert facts is not None
    assert (facts.width, facts.height, facts.components, len(facts.notes)) == (40, 30, 3, 1)
    for data in (b"", b"\xff\xd8", jpeg[:30], b"\xff\xd8\xff\xc0", saved(picture(), "PNG")):
        assert jpeg_facts(data) is None


# ---------------------------------------------------------------------------------------------------- what breaks it


def test_a_picture_that_takes_too_long_is_given_up(decoder: Decoder) -> None:
    # Squares that no block of 8 x 8 fits: each scan has something to say. some 12 s of work, ended after 1 to 2.
    squares = Image.effect_noise((400, 400), 60).resize((10_000, 10_000), Image.Resampling.NEAREST).convert("RGB")
    slow = many_scans(saved(squares, "JPEG", progressive=True), 100)
    begun = time.monotonic()
    with pytest.raises(UnreadableImage, match="longer than 1 s: save it again, smaller"):
        decoder.picture(slow, LOCAL._replace(seconds=1))
    assert time.monotonic() - begun < 30
    assert decoder.picture(saved(picture(), "JPEG"), SENT).size == (40, 30)


def ask_stopped(decoder: Decoder, seconds: int, then: int | None = None) -> str:
    """What is said of a picture whose process stands still, and may be sent a signal."""
    decoder.picture(saved(picture(), "JPEG"), SENT)
    (worker,) = decoder._idle
    os.kill(worker.process.pid, signal.SIGSTOP)
    said: list[str] = []

    def ask() -> None:
        try:
            decoder.picture(saved(picture(), "JPEG"), SENT._replace(seconds=seconds))
        except UnreadableImage as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while decoder._idle:
        time.sleep(0.01)
    if then is not None:
        os.kill(worker.process.pid, then)
        os.kill(worker.process.pid, signal.SIGCONT)
    thread.join(30)
    assert not thread.is_alive()
    assert worker.process.poll() is not None
    assert decoder.picture(saved(picture(), "JPEG"), SENT).size == (40, 30)  # by another
    return said[0]


def test_a_decoder_that_crashes_or_hangs_costs_one_picture(decoder: Decoder) -> None:
    assert ask_stopped(decoder, 20, signal.SIGSEGV) == "its decoder broke (SIGSEGV), it is damaged: save it again"
    decoder.close()
    assert "longer than 1 s" in ask_stopped(decoder, 1)


def test_a_decoder_that_was_ended_while_it_waited_costs_none(decoder: Decoder) -> None:
    decoder.picture(saved(picture(), "JPEG"), SENT)
    decoder._idle[0].process.kill()
    time.sleep(0.1)
    assert decoder.picture(saved(picture(), "JPEG"), SENT).size == (40, 30)


def test_threads_have_a_decoder_each(decoder: Decoder) -> None:
    data = [saved(Image.new("RGB", (30 + n, 20)), "PNG") for n in range(40)]
    widths: list[int] = []
    threads = [
        threading.Thread(target=lambda part: widths.extend(decoder.picture(d, SENT).width for d in part), args=(p,))
        for p in (data[:20], data[20:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(widths) == list(range(30, 70))
    assert 1 <= len(decoder._idle) <= 2


def test_without_a_decoder_it_is_no_pictures_fault(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(OSError, match="the decoder of pictures does not start"):
        decoder.picture(saved(picture(), "JPEG"), SENT)
