"""What each kind of picture becomes, against pixels that NumPy computes; files by Pillow, or by hand."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagebert.decoder import RefusedPicture, decode

Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 16, 24


def gradients() -> Pixels:
    """[h, w, 3], another one in each channel, so that no turn and no swap of channels gives the same."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 10, y * 15, 250 - x * 5 - y * 6], axis=-1).astype(np.uint8)


RGB = gradients()
GREY: Pixels = RGB[..., 0]
ALPHA: Pixels = np.add.outer(np.arange(HEIGHT) * 8, np.arange(WIDTH) * 5).astype(np.uint8)
DEEP: NDArray[np.uint16] = (GREY.astype(np.uint16) << 8) + np.arange(WIDTH, dtype=np.uint16) * 7


def saved(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """EXIF of one entry; kind 1 is a BYTE, 3 a SHORT, 4 a LONG."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], orientation).ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


def xmp_of(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
        % orientation
    )


def with_notes(jpeg: bytes, *notes: bytes) -> bytes:
    """Each in an APP1 segment of its own, at the beginning."""
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note for note in notes)
    return jpeg[:2] + segments + jpeg[2:]


def png(samples: NDArray[Any], colour: int, bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """By hand: of `samples` [h, w] or [h, w, channels]; `colour` is PNG's type; `chunks` go before the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        digits = ["".join(f"{value:0{bits}b}" for value in row) for row in rows]
        packed = [int(d.ljust(-len(d) % 8 + len(d), "0"), 2).to_bytes((len(d) + 7) // 8) for d in digits]
    lines = zlib.compress(b"".join(b"\0" + row for row in packed))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    others = b"".join(chunk(*of) for of in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + others + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def tiff(samples: NDArray[Any], order: str = "<", bits: int | None = None, white: int = 1, numbers: int = 1) -> bytes:
    """By hand: grey, one strip. `white`: 0 where 0 is white; `numbers`: 1 unsigned, 2 signed, 3 floating."""
    if bits == 12:
        data = int("".join(f"{value:012b}" for value in samples.ravel()), 2).to_bytes(samples.size * 12 // 8)
    else:
        data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    height, width = samples.shape
    tags = {256: width, 257: height, 258: bits or 8 * samples.dtype.itemsize, 259: 1, 262: white, 273: 0, 277: 1}
    tags |= {278: height, 279: len(data), 339: numbers}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(tags))
    return head + entries + bytes(4) + data


def on_white(colours: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def grey(values: NDArray[Any]) -> Pixels:
    return np.repeat(values[..., None], 3, axis=-1).astype(np.uint8)


def from_cmyk(values: Pixels) -> Pixels:
    ink = values.astype(float) / 255
    return np.rint(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])).astype(np.uint8)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Upright, from what a camera held so wrote: EXIF 2.32, 4.6.4."""
    across = pixels.transpose(1, 0, 2)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: across,
        6: across[:, ::-1],
        7: across[::-1, ::-1],
        8: across[::-1],
    }[orientation]


def check(data: bytes, expected: Pixels, most: float = 0) -> None:
    image = decode(data, 10**6)
    assert image.mode == "RGB"
    assert np.asarray(image).shape == expected.shape
    assert np.abs(np.asarray(image, int) - expected).max() <= most


# --------------------------------------------------------------------------------------------------------- orientation

JPEG = {"quality": 100, "subsampling": 0}
CONTAINERS: dict[str, tuple[dict[str, Any], int]] = {  # how it is saved, and by how much pixels may differ
    "JPEG": (JPEG, 4),
    "PNG": ({}, 0),
    "WEBP": ({"lossless": True}, 0),
    "AVIF": ({"quality": 100, "subsampling": "4:4:4"}, 4),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", CONTAINERS)
def test_orientation(kind: str, orientation: int) -> None:
    """From EXIF in both orders of bytes, and from XMP where EXIF says nothing."""
    options, most = CONTAINERS[kind]
    for order in "<>":
        check(saved(RGB, kind, exif=exif_of(orientation, order), **options), turned(RGB, orientation), most)
    if kind != "AVIF":
        xmp = {"pnginfo": png_xmp(orientation)} if kind == "PNG" else {"xmp": xmp_of(orientation)}
        check(saved(RGB, kind, **xmp, **options), turned(RGB, orientation), most)


def png_xmp(orientation: int) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp_of(orientation).decode())
    return info


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff(orientation: int) -> None:
    for compression in ("raw", "tiff_lzw"):
        check(saved(RGB, "TIFF", tiffinfo={274: orientation}, compression=compression), turned(RGB, orientation))


def test_orientation_that_is_unusual() -> None:
    jpeg = saved(RGB, "JPEG", **JPEG)
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(8)
    for notes, orientation in (
        ([exif_of(6, kind=4)], 6),  # a LONG
        ([exif_of(6, kind=1)], 1),  # a BYTE is none
        ([exif_of(6), exif_of(3)], 6),  # of two the first
        ([exif_of(6), xmp], 6),  # EXIF before XMP
        ([xmp, exif_of(6)], 6),
        ([exif_of(0)], 1),
        ([exif_of(9)], 1),
        ([exif_of(6)[:-8]], 1),  # cut
    ):
        check(with_notes(jpeg, *notes), turned(RGB, orientation), 4)


# ------------------------------------------------------------------------------------------ transparency, bits, colour


def palette() -> tuple[Pixels, Pixels, Image.Image]:
    """Indices [h, w], colours [256, 3], and both as an image of mode P."""
    indices = (np.arange(HEIGHT * WIDTH) % 200).reshape(HEIGHT, WIDTH).astype(np.uint8)
    colours = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256) ^ 85], axis=-1).astype(np.uint8)
    image = Image.fromarray(indices, "L")
    image.putpalette(colours.tobytes())
    return indices, colours, image


INDICES, COLOURS, PALETTE = palette()
PALETTE_ALPHA = np.linspace(0, 255, 256).astype(np.uint8)
RGBA = np.dstack([RGB, ALPHA])
CMYK = np.dstack([RGB, ALPHA // 2])
BITS = GREY > 100
DEEP_RGB = RGB.astype(np.uint16) * 257

KINDS: dict[str, tuple[Callable[[], bytes], Pixels, float]] = {
    # Transparent parts are white.
    "PNG RGBA": (lambda: saved(RGBA, "PNG"), on_white(RGB, ALPHA), 1),
    "WebP RGBA": (lambda: saved(RGBA, "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA), 1),
    "TIFF RGBA": (lambda: saved(RGBA, "TIFF"), on_white(RGB, ALPHA), 1),
    "AVIF RGBA": (lambda: saved(RGBA, "AVIF", quality=100, subsampling="4:4:4"), on_white(RGB, ALPHA), 4),
    "PNG LA": (lambda: saved(Image.fromarray(RGBA[..., [0, 3]], "LA"), "PNG"), on_white(grey(GREY), ALPHA), 1),
    "PNG RGBA, 16 bits": (lambda: png(RGBA.astype(np.uint16) * 257, 6, 16), on_white(RGB, ALPHA), 1),
    "PNG LA, 16 bits": (lambda: png(RGBA[..., [0, 3]].astype(np.uint16) * 257, 4, 16), on_white(grey(GREY), ALPHA), 1),
    "PNG palette with alpha": (
        lambda: saved(PALETTE, "PNG", transparency=PALETTE_ALPHA.tobytes()),
        on_white(COLOURS[INDICES], PALETTE_ALPHA[INDICES]),
        1,
    ),
    "PNG palette with one colour": (
        lambda: saved(PALETTE, "PNG", transparency=7),
        np.where(INDICES[..., None] == 7, 255, COLOURS[INDICES]).astype(np.uint8),
        0,
    ),
    "GIF with one colour": (
        lambda: saved(PALETTE, "GIF", transparency=7),
        np.where(INDICES[..., None] == 7, 255, COLOURS[INDICES]).astype(np.uint8),
        0,
    ),
    "PNG RGB with one colour": (
        lambda: saved(RGB, "PNG", transparency=tuple(RGB[3, 5].tolist())),
        np.where((RGB[3, 5] == RGB).all(axis=-1, keepdims=True), 255, RGB).astype(np.uint8),
        0,
    ),
    "PNG grey with one": (
        lambda: saved(GREY, "PNG", transparency=50),
        grey(np.where(GREY == 50, 255, GREY)),
        0,
    ),
    "PNG grey with one, 16 bits": (
        lambda: png(DEEP, 0, 16, (b"tRNS", struct.pack(">H", DEEP[3, 5]))),
        grey(np.where(DEEP[3, 5] == DEEP, 255, DEEP >> 8)),
        0,
    ),
    # Bits.
    "PNG grey, 16 bits": (lambda: png(DEEP, 0, 16), grey(DEEP >> 8), 0),
    "PNG RGB, 16 bits": (lambda: png(DEEP_RGB, 2, 16), RGB, 0),
    "PNG grey, 4 bits": (lambda: png(GREY >> 4, 0, 4), grey((GREY >> 4) * 17), 0),
    "PNG grey, 2 bits": (lambda: png(GREY >> 6, 0, 2), grey((GREY >> 6) * 85), 0),
    "PNG palette, 4 bits": (
        lambda: png(GREY >> 4, 3, 4, (b"PLTE", COLOURS[:16].tobytes())),
        COLOURS[GREY >> 4],
        0,
    ),
    "TIFF grey, 16 bits": (lambda: tiff(DEEP), grey(DEEP >> 8), 0),
    "TIFF grey, 16 bits, big endian": (lambda: tiff(DEEP, ">"), grey(DEEP >> 8), 0),
    "TIFF grey, 16 bits, 0 is white": (lambda: tiff(DEEP, white=0), grey(255 - (DEEP >> 8)), 0),
    "TIFF grey, 12 bits": (lambda: tiff(DEEP >> 4, bits=12), grey(DEEP >> 8), 0),
    "TIFF grey, 0 is white": (lambda: tiff(GREY, white=0), grey(255 - GREY), 0),
    **{
        f"{kind}, 1 bit": (lambda kind=kind: saved(BITS, kind), grey(255 * BITS), 0)
        for kind in ("PNG", "TIFF", "BMP", "GIF")
    },
    # Colours.
    "PNG palette": (lambda: saved(PALETTE, "PNG"), COLOURS[INDICES], 0),
    "BMP palette": (lambda: saved(PALETTE, "BMP"), COLOURS[INDICES], 0),
    "BMP": (lambda: saved(RGB, "BMP"), RGB, 0),
    "JPEG grey": (lambda: saved(GREY, "JPEG", quality=100), grey(GREY), 2),
    "JPEG CMYK": (lambda: saved(Image.fromarray(CMYK, "CMYK"), "JPEG", **JPEG), from_cmyk(CMYK), 6),
    "TIFF CMYK": (lambda: saved(Image.fromarray(CMYK, "CMYK"), "TIFF"), from_cmyk(CMYK), 1),
    "JPEG progressive": (lambda: saved(RGB, "JPEG", progressive=True, **JPEG), RGB, 4),
    "JPEG RGB": (lambda: saved(RGB, "JPEG", keep_rgb=True, **JPEG), RGB, 4),
    "JPEG with a colour profile": (lambda: saved(RGB, "JPEG", icc_profile=swapped_profile(), **JPEG), RGB, 4),
    "PNG with a colour profile": (lambda: saved(RGB, "PNG", icc_profile=swapped_profile()), RGB, 0),
    # Several pictures: the first.
    **{
        f"{kind} of three": (
            lambda kind=kind, options=options: saved(
                RGB, kind, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), c) for c in ("red", "blue")],
                **options,
            ),
            RGB,
            most,
        )
        for kind, (options, most) in {**CONTAINERS, "TIFF": ({}, 0), "MPO": (JPEG, 4)}.items()
        if kind != "JPEG"
    },
}  # fmt: skip


def swapped_profile() -> bytes:
    """A profile that would change every colour, if it were followed: sRGB's with red's and blue's places changed."""
    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", data, 128)
    for at in range(132, 132 + 12 * count, 12):
        data[at : at + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(bytes(data[at : at + 4]), data[at : at + 4])
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels(kind: str) -> None:
    make, expected, most = KINDS[kind]
    check(make(), expected, most)


def test_gif_of_three() -> None:
    frames = [PALETTE, *(Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))]
    check(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), COLOURS[INDICES])


def test_ycck() -> None:
    """Four components of which Adobe says that the first three are YCbCr: of what RGB calls the inks' amounts."""
    y, cb, cr, k = stored = 60, 140, 170, 90
    jpeg = saved(Image.new("CMYK", (WIDTH, HEIGHT), tuple(255 - value for value in stored)), "JPEG", **JPEG)
    at = jpeg.index(b"Adobe") + 11
    assert jpeg[at] == 0
    inks = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128), 255 - k]
    expected = from_cmyk(np.broadcast_to(np.rint(inks).astype(np.uint8), (HEIGHT, WIDTH, 4)))
    check(jpeg[:at] + b"\2" + jpeg[at + 1 :], expected, 3)


# ------------------------------------------------------------------------------------------------ what is not a picture


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(DEEP.astype(np.int32), numbers=2), "its pixels are 32-bit or signed integers"),
        (tiff(DEEP.astype(np.int16), numbers=2), "its pixels are 32-bit or signed integers"),
        (tiff(DEEP.astype(np.float32), numbers=3), "its pixels are floating-point numbers"),
        (tiff(DEEP.astype(np.float64), numbers=3), "it is a TIFF of a rare kind, which is not read: save it as JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "it is HEIC, which is not read: save it as JPEG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "it is JPEG 2000, which is not read: save it as JPEG"),
        (b"\xff\x0a" + bytes(40), "it is JPEG XL, which is not read: save it as JPEG"),
        (b"%PDF-1.7", "it is not a picture in a known format"),
        (b"", "it is not a picture in a known format"),
    ],
)
def test_refused(data: bytes, said: str) -> None:
    with pytest.raises(RefusedPicture) as error:
        decode(data, 10**6)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_that_was_cut_is_no_picture(kind: str) -> None:
    whole = saved(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), kind)
    decode(whole, 10**6)
    for length in (20, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises((RefusedPicture, OSError, ValueError, SyntaxError)):  # Pillow's are of many kinds
            decode(whole[:length], 10**6)
