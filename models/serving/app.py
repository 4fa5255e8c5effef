"""Answers HTTP requests as OpenAI's API does: completions, conversations, a list of models; and what heads say.

    GET  /v1/models[/NAME]      what is served, with the epsilons of each model
    POST /v1/completions        goes on with a text
    POST /v1/chat/completions   answers a conversation, by the checkpoint's own chat template
    POST /v1/classify           what a model's head gives for documents
    GET  /healthz               no token
    GET  /metrics               counts of all requests together

An error is a JSON object `error` with `message`, `type` and `code`. No message repeats what was asked.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pydantic
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..decoding.forms import Form, Forms
from ..decoding.writing import by_length
from ..errors import Busy, CombinationRefused, FormRefused, InvalidPrompt
from ..records.text import is_asked
from .engine import End, Engine, Event, Found, Order, Ticket, Token
from .schema import (
    KNOWN,
    MAX_BODY,
    AnswerForm,
    AsJson,
    AsRegex,
    AsReport,
    AsText,
    Chat,
    Completion,
    Question,
)
from .served import Model, Served, Shown, Writing

logger = logging.getLogger(__name__)

_BODY_S = 30.0  # for a whole request to arrive
_LETTERS = 32  # of a token at the most, in the mean of a text
_MOST_FORMS = 16  # that wait to be made; each may take a second
_AT_ONCE = 2048  # tokens of documents that are read in one pass


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class _Client:
    """Whoever sent a request, and until when an answer is of use to them."""

    def __init__(self, request: Request, seconds: float) -> None:
        """Begins the time of a request, whatever is done for it: its form, its prompt's words, its text."""
        self._request, self._ends = request, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._ends - time.monotonic())

    async def waits_for(self, work: Awaitable[Found]) -> Found:
        """Returns what work gives; work that nobody waits for any longer is cancelled.

        Raises:
            ClientDisconnect: the client is gone.
            TimeoutError: the time is over.
        """
        working, gone = asyncio.ensure_future(work), asyncio.create_task(_until_gone(self._request))
        try:
            done, _ = await asyncio.wait({working, gone}, timeout=self.left, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                return working.result()
            raise ClientDisconnect if gone in done else TimeoutError
        finally:
            gone.cancel()
            working.cancel()


@dataclass(slots=True)
class Counts:
    """Counts since the start; nothing of them is of one request."""

    answered: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    seconds: float = 0.0  # of texts that were written, waiting included
    texts: int = 0


class Service:
    """The service's state, and its ASGI app.

    Args:
        token: that a request must show as a bearer's; None: whoever reaches it may ask.
        seconds: after which a request is ended, from when it has arrived.
    """

    def __init__(self, served: Served, engine: Engine, *, token: str | None, seconds: float) -> None:
        self._served, self._engine, self._seconds = served, engine, seconds
        self._token = None if token is None else hashlib.sha256(token.encode()).digest()
        self._started = int(time.time())
        self.counts = Counts()
        self._making, self._forms_asked = asyncio.Semaphore(1), 0  # forms are made one at a time
        answers = {
            "/metrics": ("GET", self._metrics),
            "/v1/models": ("GET", self._list),
            "/v1/models/{name}": ("GET", self._one),
            "/v1/completions": ("POST", self._complete),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/classify": ("POST", self._classify),
        }
        self.app = Starlette(
            routes=[
                Route("/healthz", self._health, methods=["GET"]),
                *(
                    Route(path, self._guarded(path, answer), methods=[method])
                    for path, (method, answer) in answers.items()
                ),
            ],
            exception_handlers={404: _not_there, 405: _not_there},
        )

    def _guarded(self, path: str, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            try:
                self._recognise(request)
                response: Response = await answer(request)
            except _Refused as err:
                response = _error(err)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody is there to read it
            except Exception as err:  # its message may tell of what was asked
                logger.error("%s could not be answered: %s", path, type(err).__name__)
                response = _error(_Refused(500, "this could not be answered; the server goes on", "failed"))
            self.counts.answered[path, response.status_code] += 1
            return response

        return guarded

    def _recognise(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        is_known = hmac.compare_digest(hashlib.sha256(shown.encode()).digest(), self._token)
        if scheme.lower() != "bearer" or not is_known:
            raise _Refused(401, "show the service's token: Authorization: Bearer TOKEN", "invalid_api_key")

    async def _health(self, request: Request) -> Response:
        is_well = self._engine.is_alive
        return JSONResponse({"status": "ok" if is_well else "ended"}, 200 if is_well else 503)

    async def _metrics(self, request: Request) -> Response:
        running, waiting = self._engine.load
        lines = [
            "# TYPE confide_requests_total counter",
            *(
                f'confide_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self.counts.answered.items())
            ),
            "# TYPE confide_texts_running gauge",
            f"confide_texts_running {running}",
            "# TYPE confide_requests_waiting gauge",
            f"confide_requests_waiting {waiting}",
            "# TYPE confide_tokens_total counter",
            f'confide_tokens_total{{kind="prompt"}} {self._engine.read}',
            f'confide_tokens_total{{kind="prefix"}} {self._engine.known}',
            f'confide_tokens_total{{kind="written"}} {self._engine.written}',
            "# TYPE confide_text_seconds summary",
            f"confide_text_seconds_sum {self.counts.seconds:.6f}",
            f"confide_text_seconds_count {self.counts.texts}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _list(self, request: Request) -> Response:
        models = [self._described(model) for model in self._served.models.values()]
        return JSONResponse({"object": "list", "data": models})

    async def _one(self, request: Request) -> Response:
        return JSONResponse(self._described(self._model(request.path_params["name"])))

    def _described(self, model: Model) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": self._started,
            "owned_by": "confide",
            "studies": [source.study for source in model.sources],
            "spent": _spent(model),
            "without_privacy": list(model.unbounded),
            "classifies": model.head is not None,
            "meaning": model.meaning,
        }

    async def _complete(self, request: Request) -> Response:
        asked, client = await self._admitted(request, Completion)
        model = self._model(asked.model)
        self._refuse_far_too_long([asked.prompt])
        ids = self._served.prompt(asked.prompt)
        if not ids:
            raise _Refused(400, "prompt is empty, and the backbone has no word that begins a text", "invalid_prompt")
        order = await self._order(client, model, asked, ids, asked.max_tokens)
        shown = await self._shown(client, model, asked, ids) if asked.echo else None
        answer = _CompletionAnswer(model.name, asked, self._served, ids, shown)
        return await self._answered(client, asked, order, answer)

    async def _shown(self, client: _Client, model: Model, asked: Completion, ids: list[int]) -> "list[Shown]":
        """What the model makes of the prompt itself, for who wants it repeated."""
        if asked.told is None:
            return []
        try:
            scored = self._engine.call(partial(self._served.scored, model, ids, asked.told))
            return await client.waits_for(asyncio.wrap_future(scored))
        except InvalidPrompt as err:
            raise _Refused(400, str(err), "context_length_exceeded") from None
        except Busy as err:
            raise self._busy(err) from None
        except TimeoutError:
            raise self._late("not answered") from None

    async def _chat(self, request: Request) -> Response:
        asked, client = await self._admitted(request, Chat)
        model, roles = self._model(asked.model), [message.role for message in asked.messages]
        if not is_asked(roles):
            raise _Refused(
                400, "messages are a system's, if any, then a user's and an assistant's in turn, and end with a user's",
                "invalid_messages",
            )  # fmt: skip
        texts = [message.text for message in asked.messages]
        self._refuse_far_too_long(["".join(texts)])
        try:
            ids, ends = self._served.requests.chat(roles, texts), self._served.requests.turn_ends(roles)
        except InvalidPrompt as err:
            raise _Refused(400, str(err), "no_chat_template") from None
        order = await self._order(client, model, asked, ids, asked.longest, ends)
        return await self._answered(client, asked, order, _ChatAnswer(model.name, asked, self._served, ids))

    async def _classify(self, request: Request) -> Response:
        asked, client = await self._admitted(request, Question)
        model = self._model(asked.model)
        try:
            self._refuse_far_too_long(asked.texts)
            documents = self._served.documents(asked.texts, asked.template)
            found = await client.waits_for(self._outputs(model, documents))
        except InvalidPrompt:  # its message quotes the template
            raise _Refused(
                400,
                "template must hold one name in braces, and each document must have at most "
                f"{self._served.longest:,} tokens with it",
                "invalid_template",
            ) from None
        except CombinationRefused as err:
            raise _Refused(400, str(err), "no_head") from None
        except Busy as err:
            raise self._busy(err) from None
        except TimeoutError:
            raise self._late("not answered") from None
        rows = [{"object": "outputs", "index": place, "outputs": row} for place, row in enumerate(found)]
        told = {"model": model.name, "meaning": model.meaning, "data": rows, "spent": _spent(model)}
        return JSONResponse({"object": "list", **told})

    async def _outputs(self, model: Model, documents: list[list[int]]) -> list[list[float]]:
        """Computes the head's outputs, some documents at a time, between which texts of others are written on."""
        found: list[list[float]] = [[]] * len(documents)
        for places in by_length(documents, tokens=_AT_ONCE):
            some = [documents[place] for place in places]
            rows = await asyncio.wrap_future(self._engine.call(partial(self._served.classify, model, some)))
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return found

    async def _admitted(self, request: Request, form: type[pydantic.BaseModel]) -> tuple[Any, _Client]:
        """Reads a request; its time begins once it is here, as how long it is on its way has a bound of its own."""
        return await _read(request, form), _Client(request, self._seconds)

    def _model(self, name: str) -> Model:
        if name not in self._served.models:
            raise _Refused(
                404, f"no such model; there are {', '.join(self._served.models)}", "model_not_found"
            )  # fmt: skip
        return self._served.models[name]

    def _refuse_far_too_long(self, texts: Sequence[str]) -> None:
        """Before anything is read: a word has some letters, and no more than so many in the mean."""
        if max(map(len, texts)) > _LETTERS * self._served.longest:
            raise _Refused(
                400, f"a text is longer than the {self._served.longest:,} tokens that the model reads",
                "context_length_exceeded",
            )  # fmt: skip

    async def _form(self, client: _Client, wanted: AnswerForm | None) -> Form | None:
        """Makes the form that an answer shall have: one at a time and beside the loop, as it may take a moment."""
        if wanted is None or isinstance(wanted, AsText):
            return None
        if self._forms_asked >= _MOST_FORMS:
            raise self._busy(Busy(f"{_MOST_FORMS} requests wait for their forms already"))
        self._forms_asked += 1
        try:
            return await client.waits_for(self._in_turn(wanted))
        except FormRefused as err:
            raise _Refused(400, str(err), "invalid_response_format") from None
        except TimeoutError:
            raise self._late("the form was not made") from None
        finally:
            self._forms_asked -= 1

    async def _in_turn(self, wanted: AnswerForm) -> Form:
        await self._making.acquire()
        making = asyncio.ensure_future(asyncio.to_thread(_made, self._served.forms, wanted))
        # No thread can be ended: where nobody waits for a form any longer, the next one waits for it all the same.
        making.add_done_callback(self._end_turn)
        await asyncio.wait({making})
        return making.result()

    def _end_turn(self, made: "asyncio.Future[Form]") -> None:
        self._making.release()
        if not made.cancelled():
            made.exception()  # looked at, or asyncio logs it, and it may quote what was asked

    async def _order(
        self,
        client: _Client,
        model: Model,
        asked: Completion | Chat,
        ids: list[int],
        longest: int,
        ends: Set[int] = frozenset(),
    ) -> Order:
        room = self._served.longest - len(ids)
        if room < 1:
            raise _Refused(
                400,
                f"the request has {len(ids):,} tokens, and the model reads {self._served.longest:,} with the answer",
                "context_length_exceeded",
            )
        return Order(
            ids=ids,
            weights=model.weights,
            longest=min(longest, room),
            ends=self._served.ends | ends,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=None if asked.seed is None else asked.seed % 2**64,
            logprobs=asked.told or 0,
            form=await self._form(client, asked.response_format),
        )

    async def _answered(self, client: _Client, asked: Completion | Chat, order: Order, answer: "_Answer") -> Response:
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the server has ended, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            ticket = self._engine.submit(order, tell)
        except Busy as err:
            raise self._busy(err) from None
        pieces = self._pieces(client, ticket, events, answer)
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return _Streamed(ticket, _stream(pieces, answer, order, with_usage=with_usage))
        try:
            reason = await client.waits_for(_all(pieces))
        except TimeoutError:
            reason = "late"
        finally:
            ticket.cancel()
        if reason in ("failed", "cancelled"):
            raise _Refused(503, "the model could not write this; the server goes on", "not_written")
        if reason == "late":
            raise self._late("not written", "; ask for fewer tokens")
        return JSONResponse(answer.whole(order, reason))

    async def _pieces(
        self, client: _Client, ticket: Ticket, events: "asyncio.Queue[Event]", answer: "_Answer"
    ) -> AsyncGenerator[tuple[str, str | None]]:
        """Yields (text that is new, None) as it is written, and at the end ("", the reason)."""
        began = time.perf_counter()
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), max(0.001, client.left))
                except TimeoutError:
                    yield answer.cut(), None
                    yield "", "late"
                    return
                if isinstance(event, End):
                    yield answer.cut(), None
                    yield "", event.reason
                    return
                piece, is_stopped = answer.take(event)
                if piece:
                    yield piece, None
                if is_stopped:
                    yield "", "stop"
                    return
        finally:
            ticket.cancel()
            self.counts.texts += 1
            self.counts.seconds += time.perf_counter() - began

    def _busy(self, err: Busy) -> _Refused:
        running, waiting = self._engine.load
        usual = self.counts.seconds / self.counts.texts if self.counts.texts else 1.0
        after = math.ceil(min(60.0, max(1.0, usual * waiting / max(1, running))))
        return _Refused(429, f"{err}; try again in {after} s", "rate_limit_exceeded", after)

    def _late(self, what: str, advice: str = "") -> _Refused:
        return _Refused(504, f"{what} within {self._seconds:g} s{advice}", "timeout")


class _Streamed(StreamingResponse):
    """A stream that ends its text, also if the client was gone before it began."""

    def __init__(self, ticket: Ticket, parts: AsyncIterator[str]) -> None:
        super().__init__(parts, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


class _Answer:
    """A text as it grows, and the objects in which OpenAI's API tells of it."""

    object_whole, object_piece, prefix = "", "", ""

    def __init__(self, model: str, asked: Completion | Chat, served: Served, prompt: Sequence[int]) -> None:
        self._model, self._served = model, served
        self._stops, self._told = asked.stops, asked.told
        self._id, self._created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.count = 0  # tokens that were written
        self._tokens: list[Token] = []
        self._words = Writing(served, prompt)
        self._is_begun = False
        self.said = ""  # what was given out so far
        self._text = ""  # what is written, held back parts included

    def take(self, token: Token) -> tuple[str, bool]:
        """Takes a token; returns the text that can be given out now, and whether a stop ended it."""
        self.count += 1
        if self._told is not None:
            self._tokens.append(token)
        before = len(self._text)
        self._text += self._words.next(token.id)
        places = [
            place for stop in self._stops if (place := self._text.find(stop, max(0, before - len(stop)))) >= 0
        ]  # fmt: skip
        if places:
            self._text = self._text[: min(places)]
            return self.rest(), True
        # The beginning of a stop is held back until it is known what follows.
        held = max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return self._give(self._text[: len(self._text) - held]), False

    def rest(self) -> str:
        """Returns what was held back; the text is at its end."""
        return self._give(self._text)

    def cut(self) -> str:
        """Returns what was held back of a text that was cut, in the middle of a letter perhaps."""
        self._text += self._words.rest()
        return self.rest()

    def _give(self, text: str) -> str:
        piece = text[len(self.said) :]
        self.said += piece
        return piece

    def _object(self, name: str, choices: list[dict[str, Any]], usage: Mapping[str, int] | None) -> dict[str, Any]:
        found = {
            "id": self._id, "object": name, "created": self._created, "model": self._model, "choices": choices,
        }  # fmt: skip
        return found if usage is None else {**found, "usage": dict(usage)}

    def usage(self, order: Order) -> dict[str, int]:
        """Counts tokens as OpenAI's API does."""
        prompt, written = len(order.ids), self.count
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def whole(self, order: Order, reason: str) -> dict[str, Any]:
        """The answer as one object."""
        choice = {
            "index": 0,
            "finish_reason": reason,
            "logprobs": self._logprobs(self._tokens),
            **self._body(self.said),
        }
        return self._object(self.object_whole, [choice], self.usage(order))

    def piece(self, text: str, reason: str | None) -> dict[str, Any]:
        """A part of a stream."""
        told, self._tokens = self._tokens, []
        choice = {"index": 0, "finish_reason": reason, "logprobs": self._logprobs(told), **self._delta(text, reason)}
        self._is_begun = True
        return self._object(self.object_piece, [choice], None)

    def last(self, order: Order) -> dict[str, Any]:
        """The part of a stream that counts tokens."""
        return self._object(self.object_piece, [], self.usage(order))

    def _body(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, text: str, reason: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        raise NotImplementedError


class _CompletionAnswer(_Answer):
    object_whole = object_piece = "text_completion"
    prefix = "cmpl"

    def __init__(
        self, model: str, asked: Completion, served: Served, prompt: Sequence[int], shown: "list[Shown] | None" = None
    ) -> None:
        """Takes the prompt's own tokens where it is to be repeated, and the text that it was."""
        super().__init__(model, asked, served, prompt)
        self._shown, self._prompt = shown or [], asked.prompt if shown is not None else ""

    def _body(self, text: str) -> dict[str, Any]:
        return {"text": self._prompt + text}

    def _delta(self, text: str, reason: str | None) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self._told is None:
            return None
        both: list[Token | Shown] = [*self._shown, *tokens]
        return {
            "tokens": [self._served.word(token.id) for token in both],
            "token_logprobs": [token.logprob for token in both],
            # From the least likely on: of words that look alike, as parts of letters do, the likeliest stays.
            "top_logprobs": [
                {self._served.word(word): logprob for word, logprob in reversed(token.likeliest)}
                if token.logprob is not None
                else None
                for token in both
            ],
            "text_offset": None,
        }


class _ChatAnswer(_Answer):
    object_whole, object_piece, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _body(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _delta(self, text: str, reason: str | None) -> dict[str, Any]:
        role = {} if self._is_begun else {"role": "assistant"}
        return {"delta": role | ({} if reason is not None else {"content": text})}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self._told is None:
            return None
        return {"content": [self._token(token) for token in tokens]}

    def _token(self, token: Token) -> dict[str, Any]:
        def said(word: int, logprob: float) -> dict[str, Any]:
            text = self._served.word(word)
            is_part = "\ufffd" in text  # of a letter
            return {"token": text, "logprob": logprob, "bytes": None if is_part else list(text.encode())}

        return said(token.id, token.logprob) | {"top_logprobs": [said(*each) for each in token.likeliest]}


async def _all(pieces: AsyncGenerator[tuple[str, str | None]]) -> str:
    """Waits for the end, and returns its reason."""
    found = "failed"
    async with aclosing(pieces):
        async for _, reason in pieces:
            found = reason or found
    return found


async def _stream(
    pieces: AsyncGenerator[tuple[str, str | None]], answer: _Answer, order: Order, *, with_usage: bool
) -> AsyncIterator[str]:
    async with aclosing(pieces):  # a client that goes away ends what is written for it
        async for text, reason in pieces:
            if reason in ("failed", "cancelled", "late"):
                yield _line({"error": {"message": "the text broke off", "type": "server_error", "code": reason}})
            elif text or reason is not None:
                yield _line(answer.piece(text, reason))
    if with_usage:
        yield _line(answer.last(order))
    yield "data: [DONE]\n\n"


def _made(forms: Forms, wanted: AnswerForm) -> Form:
    match wanted:
        case AsJson():
            return forms.json(wanted.json_schema.described)
        case AsRegex():
            return forms.regex(wanted.pattern)
        case AsReport():
            return forms.report(wanted.template, wanted.given)
    return forms.json({"type": "object"})


def _spent(model: Model) -> list[dict[str, Any]]:
    """What a model may tell of one person, by unit; JSON has no number for an epsilon that nothing bounds."""
    return [
        {name: "inf" if value == math.inf else value for name, value in each._asdict().items()} for each in model.spent
    ]


def _line(found: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n"


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)


async def _read(request: Request, form: type[pydantic.BaseModel]) -> Any:
    # A web page of elsewhere can send no such type without being asked whether it may.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(415, "send JSON: Content-Type: application/json", "not_json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise _Refused(413, f"a request may have {MAX_BODY:,} bytes", "too_large")
    except TimeoutError:
        raise _Refused(408, f"the request did not arrive within {_BODY_S:g} s", "too_slow") from None
    try:
        return form.model_validate_json(bytes(body))
    except pydantic.ValidationError as err:
        raise _Refused(400, _problem(err), "invalid_request") from None


def _problem(err: pydantic.ValidationError) -> str:
    """Names the first problem by its place and kind; never by the value."""
    first = err.errors(include_url=False, include_input=False, include_context=False)[0]
    named = [part for part in first["loc"] if isinstance(part, str) and part in KNOWN]
    place = ".".join(named) or "the body"
    if first["type"] == "extra_forbidden":
        return f"{place if first['loc'][-1] in KNOWN else 'a field of the request'} is not served here"
    if first["type"].startswith("union_tag"):  # whose message has the value
        return f"{place}.type: one of text, json_object, json_schema, regex and report"
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _error(err: _Refused) -> Response:
    kind = "invalid_request_error" if err.status < 500 else "server_error"
    headers = {} if err.retry_after is None else {"retry-after": str(err.retry_after)}
    return JSONResponse({"error": {"message": str(err), "type": kind, "code": err.code}}, err.status, headers)


def refused(message: str, code: str) -> Response:
    """Makes the answer to a request that is no business of this service."""
    return _error(_Refused(400, message, code))


async def _not_there(request: Request, _: Exception) -> Response:
    return _error(_Refused(404, "there is no such address here; see docs/serving.md", "not_found"))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, not all of it, that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
