"""A picture of any kind to upright RGB: the one decoder, and the process that it runs in.

Pictures come from people, and what a decoder does with a bad one is no closed list: it raises, it crashes, it takes
minutes or all memory. So `pictures.py` runs this file as a script, which measures a picture before it decodes it and
lets the kernel end it where it takes too long. It imports nothing of ImageBERT and NumPy for rare kinds only: it is
ready in a tenth of a second.

What the pixels become, wherever a picture is read: transparent parts are white; 16-bit grey is divided by 256 (TIFF's
12-bit by 16); palettes, CMYK and grey become RGB, colour profiles are ignored; of an animation the first frame counts;
EXIF's orientation is followed where it can be read, XMP's where EXIF has none, and whatever else is wrong with EXIF is
left aside.
"""

from __future__ import annotations

import io
import os
import re
import signal
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

WEB = ("JPEG", "PNG", "WEBP")
ALL = (*WEB, "BMP", "GIF", "TIFF", "AVIF")
MAX_SCANS = 100  # of a progressive JPEG: encoders make about ten, and each costs as much as a picture
MAX_SIDE = 65_500

# A picture: its bytes, the pixels and seconds of a processor it may take, the side of a thumbnail or 0, WEB or ALL.
REQUEST = struct.Struct("!QQIIB")
# What became of it, the bytes that follow (RGB pixels, a JPEG, or a sentence), width and height.
ANSWER = struct.Struct("!BQII")
DECODED, REFUSED = 0, 1

# Formats that are known, and how their files begin.
_NOT_READ = {
    "HEIC": rb"....ftyphe[iv]",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
}

_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262


class RefusedPicture(Exception):
    """This picture cannot be used; the message says why, "it ..."."""


def decode(data: bytes, pixels: int, web: bool = False, size: int = 0) -> Image.Image:
    """A picture, upright, mode RGB.

    Args:
        pixels: that it may have
        web: only what browsers send and show
        size: 0, or as a thumbnail of at most size x size

    Raises:
        RefusedPicture: it is none, or has too many pixels or scans: it is not decoded then.
        Exception: whatever Pillow raises on a damaged one.
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns of some and raises for others
    try:
        image = Image.open(io.BytesIO(data), formats=WEB if web else ALL)
    except UnidentifiedImageError:
        raise RefusedPicture(_unknown(data, web)) from None
    with image:
        shape = f"{image.width:,} x {image.height:,}"
        if image.width * image.height > pixels:
            raise RefusedPicture(f"it has more pixels than {pixels:,}, {shape}: make it smaller")
        if max(image.size) > MAX_SIDE:
            raise RefusedPicture(f"it is longer than {MAX_SIDE:,} pixels, {shape}: make it smaller")
        if image.format in ("JPEG", "MPO") and too_many_scans(data):
            raise RefusedPicture(f"it has more than {MAX_SCANS} scans: save it again")
        if size:
            image.draft(None, (2 * size, 2 * size))  # a JPEG may be decoded at 1/2, 1/4, 1/8 of its size
        image.load()
        upright = _upright(_rgb(image), _orientation(image))
        if size:
            upright.thumbnail((size, size))
        return upright


def _unknown(data: bytes, web: bool) -> str:
    for name, beginning in _NOT_READ.items():
        if re.match(beginning, data, re.DOTALL):
            return f"it is {name}, which is not read: save it as JPEG"
    if web:
        return "it is none: send a JPEG, PNG or WebP"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "it is a TIFF of a rare kind, which is not read: save it as JPEG"
    return "it is not a picture in a known format: JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF are read"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _grey(image)
    elif image.mode in ("I", "F"):
        kind = "32-bit or signed integers" if image.mode == "I" else "floating-point numbers"
        raise RefusedPicture(f"its pixels are {kind}, and nothing says which is white: save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)  # as a page would show it
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """16 bits to 8."""
    import numpy as np

    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # TIFF's
    bits = min(16, max(tags.get(_BITS, (16,))))  # 12 come as 16, too
    grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0: Pillow sees to it for 8 bits only
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # what malformed EXIF raises is no closed list
        return 1


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


# ---------------------------------------------------------------------------------------------------- a JPEG's markers


class JpegFacts(NamedTuple):
    """What a JPEG says before its first scan."""

    width: int
    height: int
    components: int
    coding: bytes  # the frame's marker, bits a sample, names of the components, their samplings
    adobe: int | None  # what Adobe's segment says of colours: 0, as they are; 1, YCbCr; 2, YCCK
    notes: tuple[bytes, ...]  # its APP1 segments: EXIF and XMP
    ends: bool  # whether its end is there


# A marker among compressed data, where FF 00 is an FF and FF D0 to FF D7 only help to go on.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START, _END, _SCAN, _NOTE, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE


def jpeg_facts(data: bytes) -> JpegFacts | None:
    """None where it is no JPEG, or has no frame before a scan."""
    frame, coding, adobe, notes = None, b"", None, []
    for marker, segment in _segments(data):
        if marker == _SCAN:
            break
        if marker in _FRAMES and len(segment) >= 6:
            frame = struct.unpack_from("!HHB", segment, 1)
            names, samplings = segment[6 : 6 + 3 * frame[2] : 3], segment[7 : 6 + 3 * frame[2] : 3]
            coding = bytes([marker, segment[0], *names, *samplings])
        if marker == _ADOBE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11]
        if marker == _NOTE:
            notes.append(segment)
    if frame is None:
        return None
    # Neither stands among compressed data; a preview's end is in front of the picture's scan.
    ends = data.rfind(bytes([0xFF, _END])) > data.rfind(bytes([0xFF, _SCAN]))
    return JpegFacts(frame[1], frame[0], frame[2], coding, adobe, tuple(notes), ends)


def too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS; the first of those in a file."""
    if data.count(bytes([0xFF, _SCAN])) <= MAX_SCANS:  # of what stands in notes and behind the end, too
        return False
    return sum(marker == _SCAN for marker, _ in _segments(data)) > MAX_SCANS


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    if data[:2] != b"\xff\xd8":
        return
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _END:
            return
        if marker in (_START, 0x01) or at + 2 > len(data):
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        yield marker, data[at + 2 : at + length]
        at += max(2, length)


# --------------------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Answers requests until there are no more."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints gets among the answers
    target.write(b"\n")  # ready
    target.flush()
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        length, pixels, seconds, size, web = REQUEST.unpack(head)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        until = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
        memory = (512 << 20) + 24 * pixels  # Pillow has four bytes a pixel, and makes some copies
        for what, most in ((resource.RLIMIT_CPU, until), (resource.RLIMIT_AS, memory)):
            _, hard = resource.getrlimit(what)
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        _answer(target, source.read(length), pixels, bool(web), size)


def _answer(target: BinaryIO, data: bytes, pixels: int, web: bool, size: int) -> None:
    outcome, width, height = REFUSED, 0, 0
    try:
        image = decode(data, pixels, web, size)
        if size:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=82)
            content = buffer.getvalue()
        else:
            content = image.tobytes()
        outcome, width, height = DECODED, image.width, image.height
    except RefusedPicture as error:
        content = str(error).encode()
    except MemoryError:
        content = b"decoding it takes too much memory: save it again, smaller"
    except Exception as error:  # it is this picture's fault, whatever it is
        said = " ".join(str(error).split())[:200] or type(error).__name__
        content = f"it is damaged ({said}): save it again".encode(errors="replace")
    target.write(ANSWER.pack(outcome, len(content), width, height))
    target.write(content)
    target.flush()


if __name__ == "__main__":
    main()
