"""`imagebert serve`: a small page to search with words and with pictures, on this machine.

What comes from outside is checked before it is used: a picture has at most UPLOAD_BYTES, is one of three formats, is
measured before it is decoded, and is decoded by a process that it may break; an image is named by its store and number,
never by a path; only this machine's own names are answered to, so that another site's page cannot talk to it through a
browser. Nothing that was sent is kept. Searching, looking at sent pictures and drawing small ones have a lane each, so
that none waits for another kind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from imagebert.config import UsageError
from imagebert.data.records import RegionRecord
from imagebert.pictures import SENT, PictureLimits
from imagebert.retrieval.pictures import Pictures, open_picture
from imagebert.retrieval.search import Finder, Hit
from imagebert.retrieval.server import run

log = logging.getLogger(__name__)

UPLOAD_BYTES = 10 << 20
UPLOADS = 4  # at once, from the first byte to the answer
UPLOAD_SECONDS, SILENT_SECONDS, SLOWEST = 30, 5, 20_000  # of an upload: all, between two parts, bytes a second
WAITING = 1024  # questions of a kind
QUERY_CHARACTERS = 500
_SHOWN = 12  # images, or captions
_KEPT = 1000  # answers to words
_PIXELS = {"small": 320, "large": 1024}
_PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

# A photograph's regions, as the store's were made; None: pictures cannot be asked about.
Extract = Callable[[Image.Image], RegionRecord]
Result = TypeVar("Result")


def make_app(
    finder: Finder, pictures: Pictures, extract: Extract | None, hosts: list[str], limits: PictureLimits = SENT
) -> Starlette:
    """The application, for any ASGI server.

    Args:
        hosts: names that requests may be addressed to
        limits: of pictures that are sent
    """
    model, looking, drawing = _Lane("model", 1), _Lane("looking", 1, nice=10), _Lane("drawing", 2, nice=5)
    uploads = asyncio.Semaphore(UPLOADS)
    found: OrderedDict[str, dict[str, Any]] = OrderedDict()  # answers to words, the longest unasked first
    store = finder.store.content[:16]  # in the addresses of pictures: browsers keep them for an hour

    def asked(text: str) -> Any:
        if len(text) > QUERY_CHARACTERS:
            raise UsageError(f"the query has {len(text)} characters: at most {QUERY_CHARACTERS} are taken")
        return finder.query(text)

    def number_of(request: Request) -> int:
        text = request.path_params["number"]
        if not (text.isascii() and text.isdigit()):
            raise _Refused("an image is named by its number", 404)
        if len(text) > 12 or int(text) >= len(finder.store):
            raise UsageError(f"there is no image {text[:12]}: the store has {len(finder.store)}")
        return int(text)

    async def about(request: Request) -> Response:
        return JSONResponse(
            {
                "images": len(finder.store),
                "captions": len(finder.captions),
                "uploads": extract is not None and bool(finder.captions),
                "upload_bytes": UPLOAD_BYTES,
                "examples": finder.captions[:: max(1, len(finder.captions) // 4)][:4],
            }
        )

    async def search(request: Request) -> Response:
        words = request.query_params.get("q", "")

        def hit(h: Hit) -> dict[str, Any]:
            return {
                "number": h.number,
                "key": h.name,
                "probability": h.probability,
                "picture": address(h.number, h.name),
            }

        def work() -> dict[str, Any]:
            if words not in found:  # somebody before may have asked the same
                query = asked(words)
                hits = [hit(h) for h in finder.images(query, _SHOWN)]
                found[words] = {"query": query.text, "unknown": query.unknown, "hits": hits}
                if len(found) > _KEPT:
                    found.popitem(last=False)
            found.move_to_end(words)
            return found[words]

        return JSONResponse(found.get(words) or await model(request, work))

    def address(number: int, key: str) -> str | None:
        """Of an image's picture, without its size; None: there is none."""
        return None if pictures.path(key) is None else f"/picture/{store}/{number}"

    async def picture(request: Request) -> Response:
        size = _PIXELS.get(request.path_params["size"])
        if request.path_params["store"] != store or size is None:
            raise _Refused("there is no such picture in this store: search again", 404)
        key = finder.store.key(number_of(request))
        data = await drawing(request, partial(pictures.thumbnail, key, size))
        if data is None:
            raise _Refused(f"there is no picture of {key}", 404)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def regions(request: Request) -> Response:
        def work() -> dict[str, Any]:
            number = number_of(request)
            shown = finder.explain(number, asked(request.query_params.get("q", "")))
            return {"key": finder.store.key(number), "words": shown.words, **_regions(shown.record, shown.classes),
                    "answers": shown.answers(), "attention": shown.attention.tolist()}  # fmt: skip

        return JSONResponse(await model(request, work))

    async def captions(request: Request) -> Response:
        if uploads.locked():
            await _body(request, keep=False)  # a sender that is cut off hears no answer
            raise _Refused(f"{UPLOADS} pictures are being looked at already: send it again in some seconds", 503)
        async with uploads:
            data = await _body(request)

            def look() -> RegionRecord:
                if extract is None:
                    raise UsageError("this server has no extractor: start it with an extractor to ask about pictures")
                return extract(open_picture(data, limits))

            record = await looking(request, look)
            hits = await model(request, partial(finder.texts, record, _SHOWN))
        names = [finder.store.class_name(number) for number in record.classes.tolist()]
        texts = [{"text": h.name, "probability": h.probability} for h in hits]
        return JSONResponse({"captions": texts, **_regions(record, names)})

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        return FileResponse(_PAGE / name) if name in ("index.html", "app.css", "app.js") else Response(status_code=404)

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, _Refused) else 400
        headers = {503: {"Retry-After": "5"}, 408: {"Connection": "close"}}.get(status)
        return JSONResponse({"error": str(error)}, status, headers)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/about", about),
            Route("/search", search),
            Route("/picture/{store}/{number}/{size}", picture),
            Route("/regions/{number}", regions),
            Route("/captions", captions, methods=["POST"]),
            Route("/{name}", page),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_Gate)],
        exception_handlers={UsageError: refuse},
    )


class _Refused(UsageError):
    """With a status of its own."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Lane:
    """Work of one kind: so much at once, in the order of asking, for those who are still there.

    Args:
        nice: how far its threads, and the decoders that they start, stand back where cores are short
    """

    def __init__(self, name: str, threads: int, nice: int = 0) -> None:
        self._threads = ThreadPoolExecutor(threads, name, partial(_stand_back, nice))
        self._turn = asyncio.Semaphore(threads)
        self._waiting = 0

    async def __call__(self, request: Request, work: Callable[[], Result]) -> Result:
        if self._waiting >= WAITING:
            raise _Refused(f"{WAITING:,} questions are waiting already: ask again in some seconds", 503)
        self._waiting += 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _stand_back(nice: int) -> None:
    """Of this thread alone, as Linux has it."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice))


async def _body(request: Request, keep: bool = True) -> bytes:
    """What was sent, kept no further than it may be.

    Raises:
        _Refused: it is too large, or comes too slowly.
    """
    data, size, begun = bytearray(), 0, time.monotonic()
    try:
        async with asyncio.timeout(SILENT_SECONDS) as limit:
            async for part in request.stream():
                size += len(part)
                if keep and size <= UPLOAD_BYTES:
                    data += part
                elif size > 8 * UPLOAD_BYTES:  # up to here read and dropped: a sender that is cut off hears no answer
                    break
                seconds = time.monotonic() - begun
                if seconds > SILENT_SECONDS and size < seconds * SLOWEST:
                    raise TimeoutError
                limit.reschedule(asyncio.get_running_loop().time() + min(SILENT_SECONDS, UPLOAD_SECONDS - seconds))
    except TimeoutError:
        raise _Refused("the picture comes too slowly: send a smaller one", 408) from None
    if size > UPLOAD_BYTES:
        raise _Refused(f"the picture is larger than {UPLOAD_BYTES >> 20} MB: send a smaller one", 413)
    return bytes(data)


class _Gate:
    """Tells browsers to load nothing from elsewhere, refuses what a page from elsewhere asks, and answers with a
    sentence whatever goes wrong inside."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def with_headers(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        async def say(text: str, status: int) -> None:
            if not begun:
                await JSONResponse({"error": text}, status)(scope, receive, with_headers)

        if dict(scope.get("headers", [])).get(b"sec-fetch-site") == b"cross-site":
            await Response("this page answers itself only", 403)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, with_headers)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except asyncio.CancelledError:  # by uvicorn, and then only
            await say("the server ends: start it again", 503)
        except Exception as error:
            what = f"{scope['method']} {scope['path'][:100]!r} failed: {type(error).__name__}: {error}"
            log.error("%s", " ".join(what.split())[:500])
            await say("the server failed at this: its own messages say why", 500)


def _regions(record: RegionRecord, classes: list[str]) -> dict[str, Any]:
    """Boxes as shares of the picture."""
    boxes = record.boxes / [record.width, record.height, record.width, record.height]
    rows = zip(boxes.tolist(), classes, record.confidences.tolist(), strict=True)
    return {
        "width": record.width,
        "height": record.height,
        "regions": [{"box": box, "class": name, "confidence": value} for box, name, value in rows],
    }


def serve(
    finder: Finder, pictures: Pictures, extract: Extract | None, host: str, port: int, limits: PictureLimits = SENT
) -> None:
    """Serves until it is interrupted.

    Raises:
        UsageError: the address cannot be used.
    """
    # A core is left for connections and decoders.
    torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) - 1)))
    names = [host, "localhost", "127.0.0.1", "[::1]"] if host not in ("0.0.0.0", "::") else ["*"]
    run(make_app(finder, pictures, extract, names, limits), host, port, (__name__,))
