"""`imagebert serve`: a small page to search with words and with pictures, on this machine.

What comes from outside is checked before it is used: a picture has at most UPLOAD_BYTES, is one of three formats and is
measured before it is decoded; an image is named by its number, never by a path; only this machine's own names are
answered to, so that another site's page cannot talk to it through a browser. Nothing that was sent is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from imagebert.config import UsageError
from imagebert.data.records import RegionRecord
from imagebert.retrieval.pictures import Pictures, open_picture
from imagebert.retrieval.search import Finder

UPLOAD_BYTES = 10 << 20
QUERY_CHARACTERS = 500
_SHOWN = 12  # images, or captions
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


def make_app(finder: Finder, pictures: Pictures, extract: Extract | None, hosts: list[str]) -> Starlette:
    """The application, for any ASGI server.

    Args:
        hosts: names that requests may be addressed to
    """
    lock = threading.Lock()  # one model, one question at a time

    def asked(text: str) -> Any:
        if len(text) > QUERY_CHARACTERS:
            raise UsageError(f"the query has {len(text)} characters: at most {QUERY_CHARACTERS} are taken")
        return finder.query(text)

    def number_of(request: Request) -> int:
        number = int(request.path_params["number"])
        if not 0 <= number < len(finder.store):
            raise UsageError(f"there is no image {number}: the store has {len(finder.store)}")
        return number

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
        def work() -> dict[str, Any]:
            query = asked(request.query_params.get("q", ""))
            with lock:
                hits = finder.images(query, _SHOWN)
            found = [
                {"number": h.number, "key": h.name, "probability": h.probability, "picture": has_picture(h.name)}
                for h in hits
            ]
            return {"query": query.text, "unknown": query.unknown, "hits": found}

        return JSONResponse(await run_in_threadpool(work))

    def has_picture(key: str) -> bool:
        return pictures.path(key) is not None

    async def picture(request: Request) -> Response:
        size = _PIXELS.get(request.path_params["size"])
        key = finder.store.key(number_of(request))
        data = None if size is None else await run_in_threadpool(pictures.thumbnail, key, size)
        if data is None:
            return JSONResponse({"error": f"there is no picture of {key}"}, 404)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def regions(request: Request) -> Response:
        def work() -> dict[str, Any]:
            number = number_of(request)
            query = asked(request.query_params.get("q", ""))
            with lock:
                found = finder.explain(number, query)
            return {"key": finder.store.key(number), "words": found.words, **_regions(found.record, found.classes),
                    "answers": found.answers(), "attention": found.attention.tolist()}  # fmt: skip

        return JSONResponse(await run_in_threadpool(work))

    async def captions(request: Request) -> Response:
        data = await _body(request)

        def work() -> dict[str, Any]:
            if extract is None:
                raise UsageError("this server has no extractor: start it with --extractor to ask about pictures")
            with lock:  # one picture is decoded at a time, too
                record = extract(open_picture(data))
                hits = finder.texts(record, _SHOWN)
            names = [_class_name(finder.store.classes, c) for c in record.classes.tolist()]
            found = [{"text": h.name, "probability": h.probability} for h in hits]
            return {"captions": found, **_regions(record, names)}

        return JSONResponse(await run_in_threadpool(work))

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        return FileResponse(_PAGE / name) if name in ("index.html", "app.css", "app.js") else Response(status_code=404)

    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 413 if isinstance(error, _TooLarge) else 400)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/about", about),
            Route("/search", search),
            Route("/picture/{number:int}/{size}", picture),
            Route("/regions/{number:int}", regions),
            Route("/captions", captions, methods=["POST"]),
            Route("/{name}", page),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_SafeHeaders)],
        exception_handlers={UsageError: refuse},
    )


class _TooLarge(UsageError):
    pass


async def _body(request: Request) -> bytes:
    """What was sent, kept no further than it may be."""
    data, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= UPLOAD_BYTES:
            data += part
        elif size > 8 * UPLOAD_BYTES:  # up to here read and dropped: a sender that is cut off hears no answer
            break
    if size > UPLOAD_BYTES:
        raise _TooLarge(f"the picture is larger than {UPLOAD_BYTES >> 20} MB: send a smaller one")
    return bytes(data)


class _SafeHeaders:
    """Tells browsers to load nothing from elsewhere, and refuses what a page from elsewhere asks."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        headers = dict(scope.get("headers", []))
        if headers.get(b"sec-fetch-site") == b"cross-site":
            await Response("this page answers itself only", 403)(scope, receive, send)
            return
        work: Awaitable[None] = self.app(scope, receive, with_headers if scope["type"] == "http" else send)
        await work


def _class_name(classes: list[str], number: int) -> str:
    return classes[number] if number < len(classes) else "whole image"


def _regions(record: RegionRecord, classes: list[str]) -> dict[str, Any]:
    """Boxes as shares of the picture."""
    boxes = record.boxes / [record.width, record.height, record.width, record.height]
    rows = zip(boxes.tolist(), classes, record.confidences.tolist(), strict=True)
    return {
        "width": record.width,
        "height": record.height,
        "regions": [{"box": box, "class": name, "confidence": value} for box, name, value in rows],
    }


def serve(finder: Finder, pictures: Pictures, extract: Extract | None, host: str, port: int) -> None:
    """Serves until it is interrupted.

    Raises:
        UsageError: the address cannot be used.
    """
    names = [host, "localhost", "127.0.0.1", "[::1]"] if host not in ("0.0.0.0", "::") else ["*"]
    app = make_app(finder, pictures, extract, names)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", server_header=False)
    try:
        socket = config.bind_socket()
    except SystemExit:  # uvicorn's answer to an address in use
        raise UsageError(f"{host}:{port} cannot be used, something may be there already: take another --port") from None
    print(f"imagebert: open http://{host}:{socket.getsockname()[1]} in a browser; Ctrl-C ends", flush=True)
    uvicorn.Server(config).run([socket])
