"""Kind and size of pictures by their first bytes, beside what Pillow says of the whole."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from imagebert.lait.picture_head import Head, NoPicture, ends, read_head

FORMS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "avif": "AVIF"}


def saved(form: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, form, **options)
    return file.getvalue()


PICTURES = {
    **{suffix: (suffix, saved(form, (417, 305))) for suffix, form in FORMS.items()},
    "progressive": ("jpg", saved("JPEG", (417, 305), progressive=True)),
    "grey": ("jpg", saved("JPEG", (3, 4000), "L")),
    "exif": ("jpg", saved("JPEG", (20, 30), exif=b"Exif\0\0MM\0*" + bytes(60_000))),
    "lossless": ("webp", saved("WEBP", (417, 305), lossless=True)),
    "transparent": ("webp", saved("WEBP", (417, 305), "RGBA", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")),
    "one": ("webp", saved("WEBP", (1, 1))),
    "avif_transparent": ("avif", saved("AVIF", (64, 2000), "RGBA")),
}


@pytest.mark.parametrize("name", PICTURES)
def test_size_is_pillows_and_known_from_the_first_bytes(name: str) -> None:
    suffix, data = PICTURES[name]
    whole = read_head(data)
    assert whole == Head(suffix, *Image.open(io.BytesIO(data)).size)
    known = [read_head(data[:length]) for length in range(min(len(data), 3000))]
    first = next((at for at, head in enumerate(known) if head is not None), len(known))
    assert set(known[first:]) <= {whole}
    assert name == "exif" or first < 1000


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_cut_has_no_end(name: str) -> None:
    suffix, data = PICTURES[name]
    assert ends(data, suffix)
    assert ends(data + b"\0 more behind it", suffix) or suffix == "avif"
    for length in (len(data) - 3, len(data) // 2):
        assert ends(data[:length], suffix) == (suffix == "gif")


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"%PDF-1.7 and so on, and so on",
        b"BM" + bytes(100),
        b"II*\0" + bytes(100),
        bytes(100),
        b"RIFF\0\0\0\0WAVE" + bytes(100),
        b"RIFF\0\0\0\0WEBPVP9 " + bytes(100),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIDAT" + bytes(100),
        b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(100),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        b"\0\0\0\x14ftypavif\0\0\0\0avif\0\0\0\x0cmeta\0\0\0\0" + bytes(100),
    ],
)
def test_what_is_none_is_told_at_once(data: bytes) -> None:
    with pytest.raises(NoPicture):
        read_head(data)


def test_damaged_heads_end_in_a_size_or_in_none() -> None:
    rng = random.Random(1)
    for suffix, data in PICTURES.values():
        for _ in range(400):
            wrong = bytearray(data[: rng.randrange(1, min(len(data), 1500))])
            for _ in range(rng.randrange(4)):
                wrong[rng.randrange(len(wrong))] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
            try:
                head = read_head(bytes(wrong))
                ends(bytes(wrong), suffix)
            except NoPicture:
                continue
            assert head is None or (head.suffix in FORMS and head.width >= 0)
