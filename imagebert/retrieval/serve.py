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
from imagebert.data.attributes import attributes_of
from imagebert.data.records import RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.pictures import SENT, PictureLimits
from imagebert.retrieval.pictures import Pictures, open_picture
from imagebert.retrieval.search import Finder, Hit, Query
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
    answers = _Answers(finder, pictures, extract, limits)
    return Starlette(
        routes=[
            Route("/", _page),
            Route("/about", answers.about),
            Route("/search", answers.search),
            Route("/picture/{store}/{number}/{size}", answers.picture),
            Route("/regions/{number}", answers.regions),
            Route("/captions", answers.captions, methods=["POST"]),
            Route("/{name}", _page),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_Gate)],
        exception_handlers={UsageError: _refuse},
    )


async def _page(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    return FileResponse(_PAGE / name) if name in ("index.html", "app.css", "app.js") else Response(status_code=404)


async def _refuse(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, _Refused) else 400
    headers = {503: {"Retry-After": "5"}, 408: {"Connection": "close"}}.get(status)
    return JSONResponse({"error": str(error)}, status, headers)


class _Answers:
    """What the page asks for, each a handler of requests; what takes long is done in its lane."""

    def __init__(self, finder: Finder, pictures: Pictures, extract: Extract | None, limits: PictureLimits) -> None:
        self._finder, self._pictures, self._extract, self._limits = finder, pictures, extract, limits
        self._model, self._looking = _Lane("model", 1), _Lane("looking", 1, nice=10)
        self._drawing = _Lane("drawing", 2, nice=5)
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._found: OrderedDict[str, dict[str, Any]] = OrderedDict()  # answers to words, the longest unasked first
        self._store = finder.store.content[:16]  # in the addresses of pictures: browsers keep them for an hour

    async def about(self, request: Request) -> Response:
        captions = self._finder.captions
        return JSONResponse(
            {
                "images": len(self._finder.store),
                "captions": len(captions),
                "uploads": self._extract is not None and bool(captions),
                "upload_bytes": UPLOAD_BYTES,
                "examples": captions[:: max(1, len(captions) // 4)][:4],
            }
        )

    async def search(self, request: Request) -> Response:
        words = request.query_params.get("q", "")
        return JSONResponse(self._found.get(words) or await self._model(request, partial(self._search, words)))

    def _search(self, words: str) -> dict[str, Any]:
        if words not in self._found:  # somebody before may have asked the same
            query = self._query(words)
            hits = [self._hit(hit) for hit in self._finder.images(query, _SHOWN)]
            self._found[words] = {"query": query.text, "unknown": query.unknown, "hits": hits}
            if len(self._found) > _KEPT:
                self._found.popitem(last=False)
        self._found.move_to_end(words)
        return self._found[words]

    def _query(self, text: str) -> Query:
        if len(text) > QUERY_CHARACTERS:
            raise UsageError(f"the query has {len(text)} characters: at most {QUERY_CHARACTERS} are taken")
        return self._finder.query(text)

    def _hit(self, hit: Hit) -> dict[str, Any]:
        # Of the picture, to which the page adds a size; None: there is no picture.
        address = None if self._pictures.path(hit.name) is None else f"/picture/{self._store}/{hit.number}"
        return {"number": hit.number, "key": hit.name, "probability": hit.probability, "picture": address}

    async def picture(self, request: Request) -> Response:
        size = _PIXELS.get(request.path_params["size"])
        if request.path_params["store"] != self._store or size is None:
            raise _Refused("there is no such picture in this store: search again", 404)
        key = self._finder.store.key(self._number(request))
        data = await self._drawing(request, partial(self._pictures.thumbnail, key, size))
        if data is None:
            raise _Refused(f"there is no picture of {key}", 404)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def regions(self, request: Request) -> Response:
        return JSONResponse(await self._model(request, partial(self._explain, request)))

    def _explain(self, request: Request) -> dict[str, Any]:
        number = self._number(request)
        shown = self._finder.explain(number, self._query(request.query_params.get("q", "")))
        return {
            "key": self._finder.store.key(number),
            "words": shown.words,
            **_regions(shown.record, shown.classes, self._finder.store),
            "answers": shown.answers(),
            "attention": shown.attention.tolist(),
        }

    def _number(self, request: Request) -> int:
        """Of the image that is asked about."""
        text, images = request.path_params["number"], len(self._finder.store)
        if not (text.isascii() and text.isdigit()):
            raise _Refused("an image is named by its number", 404)
        if len(text) > 12 or int(text) >= images:
            raise UsageError(f"there is no image {text[:12]}: the store has {images}")
        return int(text)

    async def captions(self, request: Request) -> Response:
        if self._uploads.locked():
            await _body(request, keep=False)  # a sender that is cut off hears no answer
            raise _Refused(f"{UPLOADS} pictures are being looked at already: send it again in some seconds", 503)
        async with self._uploads:
            data = await _body(request)
            record = await self._looking(request, partial(self._look, data))
            hits = await self._model(request, partial(self._finder.texts, record, _SHOWN))
        names = [self._finder.store.class_name(number) for number in record.classes.tolist()]
        texts = [{"text": hit.name, "probability": hit.probability} for hit in hits]
        return JSONResponse({"captions": texts, **_regions(record, names, self._finder.store)})

    def _look(self, data: bytes) -> RegionRecord:
        if self._extract is None:
            raise UsageError("this server has no extractor: start it with an extractor to ask about pictures")
        return self._extract(open_picture(data, self._limits))


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


def _regions(record: RegionRecord, classes: list[str], store: RegionStore) -> dict[str, Any]:
    """Boxes as shares of the picture."""
    attributes = [attribute.name for attribute in attributes_of(record, store)]
    boxes = record.boxes / [record.width, record.height, record.width, record.height]
    rows = zip(boxes.tolist(), classes, attributes, record.confidences.tolist(), strict=True)
    return {
        "width": record.width,
        "height": record.height,
        "regions": [
            {"box": box, "class": name, "attribute": attribute, "confidence": value}
            for box, name, attribute, value in rows
        ],
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
