"""The thread that writes: orders wait in a queue, begin as soon as a row is free, and end at any step.

An order is written by itself as it would be alone, greedily to the same token: `rows` says how. What is drawn at random
follows from the order's own seed.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..adapters.composing import Composition
from ..decoding.forms import Following, Form
from ..errors import Busy, FormRefused
from .rows import Row, Rows

_LIKELIEST = 1024  # words among which top_p is looked for first: to sort all of them takes as long as a small model
_COLD = 1e-6  # a temperature at which the likeliest word is sure
Reason = Literal["stop", "length", "cancelled", "failed"]
Found = TypeVar("Found")
Prefix = tuple[tuple[float, ...], Sequence[int]]


class Token(NamedTuple):
    """A token that was written."""

    id: int
    logprob: float  # natural logarithm of the model's own probability, before temperature
    likeliest: tuple[tuple[int, float], ...]  # as many words as were asked for, with theirs


class End(NamedTuple):
    """The end of a text: "stop" by a word that ends one, "length" where it was cut."""

    reason: Reason


Event = Token | End


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A text that is to be written. Its repr is empty of what was asked."""

    ids: Sequence[int] = field(repr=False)  # of the prompt, one or more
    weights: tuple[float, ...]  # of the adapters, one each; all 0: the backbone by itself
    longest: int  # tokens
    ends: frozenset[int]  # words that end a text
    temperature: float = 0.0  # 0 takes the likeliest word
    top_p: float = 1.0  # draws among the likeliest words that together have this probability
    seed: int | None = None  # None: another text each time
    logprobs: int = 0  # likeliest words that are told of each token
    form: Form | None = field(default=None, repr=False)  # that the text must have


class Ticket:
    """An order that was taken."""

    def __init__(self, order: Order, tell: Callable[[Event], None]) -> None:
        self.order, self._tell = order, tell
        self.is_cancelled = False

    def tell(self, event: Event) -> None:
        """Tells whoever ordered; if that fails, the order is cancelled, and others are written on."""
        try:
            self._tell(event)
        except Exception:
            self.is_cancelled = True

    def cancel(self) -> None:
        """Stops writing at the next step; the text ends with "cancelled"."""
        self.is_cancelled = True


@dataclass(slots=True, eq=False)
class _Writing:
    ticket: Ticket
    row: Row
    rng: np.random.Generator
    following: Following | None  # the order's form, as far as the text has it
    count: int = 0  # tokens that were written


class Engine:
    """A model that writes in a thread of its own; `stop` ends it.

    Attributes:
        written: tokens that were written since the start.
        read: tokens of prompts.
        known: of these, tokens that a prefix had told already.
    """

    def __init__(
        self, composition: Composition, *, words: int, rows: int, waiting: int, prefixes: Iterable[Prefix] = ()
    ) -> None:
        """Reads the prefixes, and starts the thread.

        Args:
            words: of the tokenizer; tables of embeddings may have more rows, which are never written.
            rows: texts that are written together.
            waiting: orders that may wait; more are refused.
            prefixes: what orders may begin with, so that it is read once: weights of the adapters, and tokens.
        """
        self._most_rows, self._most_waiting = rows, waiting
        self._words = words
        self._rows = Rows(composition)
        self._writing: list[_Writing] = []
        self._waiting: deque[Ticket] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._is_ending = False
        self.written = self.read = self.known = 0
        for weights, ids in prefixes:
            self._rows.keep(weights, ids)
        self._thread = threading.Thread(target=self._run, name="confide-serving", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """(texts that are being written, orders and questions that wait)."""
        return len(self._writing), len(self._waiting) + len(self._calls)

    @property
    def is_alive(self) -> bool:
        """True if orders are still taken."""
        return self._thread.is_alive() and not self._is_ending

    def end(self) -> None:
        """Takes no more orders, and ends all texts as cancelled; does not wait."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()

    def submit(self, order: Order, tell: Callable[[Event], None]) -> Ticket:
        """Takes an order; `tell` hears each token and the end, in the engine's thread.

        Raises:
            Busy: too many wait already, or the engine has ended.
        """
        ticket = Ticket(order, tell)
        with self._changed:
            self._refuse_if_busy()
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def call(self, compute: Callable[[], Found]) -> "Future[Found]":
        """Runs something else with the model, between two steps.

        Raises:
            Busy: as `submit`.
        """
        future: Future[Found] = Future()
        with self._changed:
            self._refuse_if_busy()
            self._calls.append((compute, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Ends all texts as cancelled, and then the thread."""
        self.end()
        self._thread.join()

    def _refuse_if_busy(self) -> None:
        if not self.is_alive:
            raise Busy("the server is ending")
        for ticket in [each for each in self._waiting if each.is_cancelled]:
            self._waiting.remove(ticket)
            ticket.tell(End("cancelled"))
        self._calls = deque(each for each in self._calls if not each[1].cancelled())
        room = self._most_waiting + self._most_rows - len(self._writing)
        if len(self._waiting) + len(self._calls) >= room:
            raise Busy(f"{self._most_waiting} requests wait already")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_ending or self._waiting or self._calls or self._writing)
                if self._is_ending:
                    break
                calls = [self._calls.popleft()] if self._calls else []
                room = self._most_rows - len(self._writing)
                begin = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            for compute, future in calls:
                _answer(compute, future)
            for ticket in begin:
                self._begin(ticket)
            due: list[Row] = []
            try:
                self._cut_cancelled()
                due = self._rows.due
                self._go_on(self._rows.read())
            except Exception:  # of whatever a request makes a model do; the message may tell of what was asked
                self._fail([each for each in self._writing if each.row in due])
            try:
                self._go_on(self._rows.step())
            except Exception:
                self._fail(self._writing)
                self._rows.clear()
        for ticket in (*(each.ticket for each in self._writing), *self._waiting):
            ticket.tell(End("cancelled"))
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(Busy("the server is ending"))

    def _begin(self, ticket: Ticket) -> None:
        if ticket.is_cancelled:
            ticket.tell(End("cancelled"))
            return
        order = ticket.order
        seed = int.from_bytes(os.urandom(16)) if order.seed is None else order.seed
        following = None if order.form is None else order.form.begin()
        writing = _Writing(ticket, Row(order.weights), np.random.default_rng(seed), following)
        self._writing.append(writing)
        self.known += self._rows.begin(writing.row, order.ids)
        self.read += len(order.ids)

    def _cut_cancelled(self) -> None:
        gone = [each for each in self._writing if each.ticket.is_cancelled]
        for each in gone:
            each.ticket.tell(End("cancelled"))
        self._leave(gone)

    def _go_on(self, found: Iterable[tuple[Row, Tensor]]) -> None:
        """Writes the next token of each of these texts."""
        of_row = {id(each.row): each for each in self._writing}
        self._leave([of_row[id(row)] for row, logits_V in found if self._write(of_row[id(row)], logits_V)])

    def _write(self, writing: _Writing, logits_V: Tensor) -> bool:
        """Writes the next token of a text; True if that is its end."""
        order, following = writing.ticket.order, writing.following
        logprobs_V = logits_V[: self._words].double().log_softmax(0)
        try:
            within_V = logprobs_V if following is None else _within(logprobs_V, following, order.ends)
        except FormRefused:  # of this text alone
            writing.ticket.tell(End("failed"))
            return True
        token = _chosen(within_V, order, writing.rng)
        if token in order.ends:
            writing.ticket.tell(End("stop"))
            return True
        top = logprobs_V.topk(order.logprobs) if order.logprobs else None
        likeliest = () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        writing.row.last = token
        writing.count += 1
        self.written += 1
        writing.ticket.tell(Token(token, float(logprobs_V[token]), likeliest))
        if following is not None and following.take(token):
            writing.ticket.tell(End("stop"))
            return True
        if writing.count >= order.longest:
            writing.ticket.tell(End("length"))
            return True
        return False

    def _leave(self, ended: Sequence[_Writing]) -> None:
        if ended:
            self._rows.end([each.row for each in ended])
            self._writing = [each for each in self._writing if each not in ended]

    def _fail(self, writing: Sequence[_Writing]) -> None:
        for each in writing:
            each.ticket.tell(End("failed"))
        self._rows.end([each.row for each in writing])
        self._writing = [each for each in self._writing if each not in writing]


def _answer(compute: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(compute())
    except Exception as err:
        future.set_exception(err)


def _within(logprobs_V: Tensor, following: Following, ends: Collection[int]) -> Tensor:
    """The logarithms of chances, but for words that may not come next in a form, or not end the text yet."""
    allowed = following.allowed()
    allowed[[end for end in ends if end < len(allowed)]] = following.may_end
    is_allowed_V = torch.from_numpy(allowed).to(logprobs_V.device)
    return logprobs_V.masked_fill(~is_allowed_V, -torch.inf)


def _chosen(logprobs_V: Tensor, order: Order, rng: np.random.Generator) -> int:
    if order.temperature < _COLD:
        return int(logprobs_V.argmax())
    chances_V = (logprobs_V / order.temperature).softmax(0)
    if order.top_p == 1:
        return _drawn(chances_V, rng)
    sorted_V, places_V = chances_V.topk(min(_LIKELIEST, len(chances_V)))
    if float(sorted_V.sum()) < order.top_p:
        sorted_V, places_V = chances_V.sort(descending=True)
    # The likeliest words whose chances together first reach top_p; always one.
    kept = int((sorted_V.cumsum(0) - sorted_V < order.top_p).sum())
    return int(places_V[_drawn(sorted_V[: max(1, kept)], rng)])


def _drawn(chances_N: Tensor, rng: np.random.Generator) -> int:
    """A place, each with its chance; they need not add up to 1."""
    sums = chances_N.cumsum(0).numpy()
    place = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
    # Rounding may point behind the last word that has a chance, and to none without.
    return min(place, int(np.searchsorted(sums, sums[-1], side="left")))
