"""The page's server: routes, answers as JSON, and what protects the reader's machine.

Knows HTTP. tables, pictures and judgements answer. Only images that the label set names are served, by their numbers:
no path of a request reaches the file system.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from segray.errors import ImageError, SegrayError, UserError
from segray.label_set.snapshot import Snapshot
from segray.limits import CONFIDENT_SCORE
from segray.view.judgements import JudgementFile
from segray.view.pictures import LabelledKey, Pictures
from segray.view.selection import ORDERS, from_query
from segray.view.tables import Tables

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_MOST_ROWS = 400
_BODY_BYTES = 10_000
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Answer = Callable[[Request], Response]


@dataclass(frozen=True)
class Content:
    """What the server shows: one state of a label set.

    stamp: part of the addresses of pictures, so that no browser shows the pictures of another label set.
    """

    state: Snapshot
    tables: Tables
    pictures: Pictures
    judgements: JudgementFile
    min_score: float = CONFIDENT_SCORE
    stamp: str = field(default_factory=lambda: secrets.token_hex(4))


@dataclass(frozen=True)
class Protection:
    """Who may ask.

    hosts: names that a request may give as its host, so that no other site can reach the server by a name of its own.
    token: secret that a first request must give; None for a server that only this machine reaches.
    """

    hosts: tuple[str, ...]
    token: str | None = None


def application(content: Content, protection: Protection) -> Starlette:
    """Return the application."""
    routes = [
        Route("/", _file("index.html")),
        *(Route(f"/static/{name}", _file(name)) for name in static_files()),
        Route("/api/state", _answering(content, _state)),
        Route("/api/images", _answering(content, _images)),
        Route("/api/facets", _answering(content, _facets)),
        Route("/api/image", _answering(content, _image)),
        Route("/api/judge", _judge(content), methods=["POST"]),
        Route("/thumbnail/{number:int}.jpg", _answering(content, _thumbnail)),
        Route("/picture/{number:int}.jpg", _answering(content, _picture)),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(protection.hosts), www_redirect=False),
        Middleware(BaseHTTPMiddleware, dispatch=_guard(protection.token)),
        Middleware(GZipMiddleware, minimum_size=2000),
    ]
    return Starlette(routes=routes, middleware=middleware)


def static_files() -> list[str]:
    """Return the names of the page's files."""
    return sorted(entry.name for entry in resources.files("segray.view").joinpath("static").iterdir())


# ---- protection -----------------------------------------------------------------------------------


def _guard(token: str | None) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def dispatch(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _refusal(request, token) or await following(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return dispatch


def _refusal(request: Request, token: str | None) -> Response | None:
    """Return the answer to a request that may not pass, None for others."""
    origin = request.headers.get("origin")
    if request.method != "GET" and origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        return JSONResponse(_error(UserError("the request comes from another page")), 403)
    cookie = f"segray_view_{request.url.port}"  # Browsers keep one cookie for all ports of a host.
    if token is None or secrets.compare_digest(request.cookies.get(cookie, "").encode(), token.encode()):
        return None
    if secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
        address = request.url.remove_query_params("token")
        response = RedirectResponse(f"{address.path}?{address.query}" if address.query else address.path, 303)
        response.set_cookie(cookie, token, httponly=True, samesite="strict")
        return response
    hint = "open the address that `segray view` printed, with its token"
    return JSONResponse(_error(UserError("this page needs its token", hint=hint)), 401)


# ---- answers --------------------------------------------------------------------------------------


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    data = resources.files("segray.view").joinpath("static", name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]

    async def endpoint(request: Request) -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return endpoint


def _answering(content: Content, answer: Callable[[Content, Request], Response]) -> Any:
    """Return an endpoint that answers in a thread, and says errors as JSON."""

    async def endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, content, request)
        except FileNotFoundError as error:
            hint = "mount or restore the folder of the images"
            gone = ImageError("the image is gone", stage="read", where=str(error), hint=hint)
            return JSONResponse(_error(gone), 404)
        except ImageError as error:
            return JSONResponse(_error(error), 422)
        except UserError as error:
            return JSONResponse(_error(error), 400)
        except SegrayError as error:
            return JSONResponse(_error(error), 503)

    return endpoint


def _error(error: SegrayError) -> dict[str, Any]:
    return {"error": {"what": error.what, "where": error.where, "found": error.found, "hint": error.hint}}


def _state(content: Content, request: Request) -> Response:
    state = content.state
    classes = [
        {"id": class_id, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*content.pictures.colours[class_id])}
        for class_id, name in state.classes.items()
    ]
    return JSONResponse(
        {
            "root": state.root, "version": state.batch, "model": str(state.model.get("name", "")),
            "rows": dict(state.rows), "classes": classes, "orders": list(ORDERS), "min_score": content.min_score,
            "stamp": content.stamp,
            "judgements": {"file": str(content.judgements.path), "count": len(content.judgements)},
        }
    )  # fmt: skip


def _images(content: Content, request: Request) -> Response:
    numbers = content.tables.images(from_query(request.query_params))
    offset = _whole(request, "offset", 0)
    wanted = numbers[offset : offset + min(_MOST_ROWS, _whole(request, "limit", 100))].tolist()
    found = content.tables.rows(wanted)
    content.pictures.expect([row["image_key"] for row in found])
    judged = content.judgements.images()
    rows = [
        {**{name: row[name] for name in ("image_no", "image_key", "width", "height", "status", "n_instances")},
         "judgements": judged.get(row["image_key"], 0)}
        for row in found
    ]  # fmt: skip
    return JSONResponse({"total": len(numbers), "offset": offset, "images": rows})


def _facets(content: Content, request: Request) -> Response:
    return JSONResponse(asdict(content.tables.facets(from_query(request.query_params))))


def _image(content: Content, request: Request) -> Response:
    key = request.query_params.get("key", "")
    if (number := content.tables.number_of(key)) is None:
        raise UserError("the label set has no such image", where=content.state.root, found=repr(key)[:200])
    ordered = content.tables.images(from_query(request.query_params))
    place = next(iter((ordered == number).nonzero()[0].tolist()), None)
    beside = {} if place is None else {"previous": place - 1, "next": place + 1}
    neighbours = {name: int(ordered[at]) for name, at in beside.items() if 0 <= at < len(ordered)}
    rows = {row["image_no"]: row for row in content.tables.rows([number, *neighbours.values()])}
    keys = {name: rows[neighbour]["image_key"] for name, neighbour in neighbours.items()}
    return JSONResponse(
        {
            **rows[number], "place": place, "total": len(ordered),
            "previous": keys.get("previous"), "next": keys.get("next"),
            "instances": [
                {name: own[name] for name in ("instance", "class_id", "score", "area", "rle")}
                | {"bbox_xywh": [own["bbox_x"], own["bbox_y"], own["bbox_w"], own["bbox_h"]]}
                for own in content.pictures.instances(key)
            ],
            "judgements": [asdict(judgement) for judgement in content.judgements.of_image(key)],
        }
    )  # fmt: skip


def _thumbnail(content: Content, request: Request) -> Response:
    image = _labelled(content, request)
    data = content.pictures.thumbnail(image, from_query(request.query_params), content.min_score)
    return _jpeg(data)


def _picture(content: Content, request: Request) -> Response:
    return _jpeg(content.pictures.picture(_labelled(content, request)))


def _judge(content: Content) -> Any:
    def save(record: Mapping[str, Any]) -> Response:
        key = record.get("image_key")
        if not isinstance(key, str) or content.tables.number_of(key) is None:
            raise UserError("the label set has no such image", where="image_key", found=repr(key)[:200])
        return JSONResponse({"saved": asdict(content.judgements.add(record)), "count": len(content.judgements)})

    async def endpoint(request: Request) -> Response:
        try:
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                raise UserError("a judgement is sent as JSON", hint="send Content-Type: application/json")
            record = json.loads(await _body(request))
            if not isinstance(record, dict):
                raise UserError("a judgement is a JSON object", found=repr(record)[:80])
            return await run_in_threadpool(save, record)
        except ValueError:
            return JSONResponse(_error(UserError("the judgement is no JSON")), 400)
        except UserError as error:
            return JSONResponse(_error(error), 400)

    return endpoint


async def _body(request: Request) -> bytes:
    """Return the body of a request. Raise UserError for a large one, without reading it."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _BODY_BYTES:
            raise UserError("the judgement is too long", hint=f"send at most {_BODY_BYTES} bytes")
    return data


def _labelled(content: Content, request: Request) -> LabelledKey:
    rows = content.tables.rows([min(request.path_params["number"], (1 << 31) - 1)])
    if not rows:
        raise UserError("the label set has no such image", found=str(request.path_params["number"]))
    return LabelledKey(rows[0]["image_key"], rows[0]["uri"], (rows[0]["height"], rows[0]["width"]))


def _jpeg(data: bytes) -> Response:
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > 9:
        raise UserError("the value is no whole number", where=name, found=repr(text)[:80])
    return int(text)
