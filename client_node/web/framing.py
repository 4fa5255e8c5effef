"""The frame around every answer to a browser: what it may load and send, how large a request is, under which name."""

import asyncio
import logging
import re
from collections.abc import Collection, Mapping
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...listening import host_of
from ...mpc.crash import TextLeftOut

logger = logging.getLogger(__name__)

MOST_BODY = 256 << 10  # bytes
BODY_S = 20.0  # for all of it to come
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser says of our own forms too that their origin is null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
}
_FOR_PROGRAMS = "/api/"  # where a refusal is a problem of RFC 9457, as all others there
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_YEAR = "max-age=31536000"
_LAST = {"Connection": "close"}  # the rest of the request is not read
_TOO_LONG = f"a request has at most {MOST_BODY >> 10} KiB"


def framed(app: ASGIApp, names: Collection[str] | None, *, is_https: bool) -> ASGIApp:
    """Puts the frame around an app.

    Args:
        names: hosts under which it may be asked; None for any. A page elsewhere must not reach a loopback port under a
            name of its own (DNS rebinding).
        is_https: True to tell browsers to come by TLS alone from now on.
    """

    async def frame(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers, begun = Headers(scope=scope), False
        taken, is_whole, end = 0, False, asyncio.get_running_loop().time() + BODY_S

        async def bounded() -> Message:
            nonlocal taken, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"a request comes within {BODY_S:.0f} s", _LAST) from None
            taken, is_whole = taken + len(message.get("body", b"")), not message.get("more_body", False)
            if taken > MOST_BODY:
                raise HTTPException(413, _TOO_LONG, _LAST)
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("Cache-Control", "no-store")
                if is_https:
                    out["Strict-Transport-Security"] = _YEAR
            await send(message)

        try:
            answer = _refusal(scope, headers, names, is_https=is_https) or app
            await answer(scope, bounded, sent)
        except TimeoutError:  # the answer is not taken: `listening` ends the connection
            raise
        except ClientDisconnect:
            return  # who has gone waits for no answer
        except Exception as err:
            logger.error("a request could not be answered", exc_info=TextLeftOut.of(err))
            if not begun:
                await _said(500, "an error that should not happen; the page's log says where")(scope, receive, sent)

    return frame


def _refusal(scope: Scope, headers: Headers, names: Collection[str] | None, *, is_https: bool) -> ASGIApp | None:
    """Finds what is wrong about a request before anybody looks at it."""
    if names is not None and host_of(headers.getlist("host")) not in names:
        return _said(421, "this page has another name")
    if _CONTROL.search(scope["path"]) or b"%00" in scope.get("query_string", b""):
        # No name here has one; PostgreSQL takes no NUL in a text, and a line's end is beyond every route.
        return _said(400, "an address has no control character")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20) or int(length) > MOST_BODY:
        return _said(413, _TOO_LONG, _LAST)
    if scope["method"] not in ("GET", "HEAD") and not _is_own(headers, is_https=is_https):
        return _said(403, "a form of another site is not taken")
    return None


def _is_own(headers: Headers, *, is_https: bool) -> bool:
    """True unless a browser says that a page of another site has sent it; programs say nothing of it."""
    sites, origins = headers.getlist("sec-fetch-site"), headers.getlist("origin")
    own = f"{'https' if is_https else 'http'}://{headers.get('host')}"
    return set(sites) <= {"same-origin", "none"} and set(origins) <= {own}


def _said(status: int, text: str, headers: Mapping[str, str] | None = None) -> ASGIApp:
    async def said(scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = PlainTextResponse(text + "\n", status, headers)
        if scope["path"].startswith(_FOR_PROGRAMS):
            body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": text}
            answer = JSONResponse(body, status, headers, media_type="application/problem+json")
        await answer(scope, receive, send)

    return said
