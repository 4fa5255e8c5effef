"""The processes of a simulation: one model and one table of records, which all of them share, and what they compute.

Processes are forked once the model is loaded. So they share its weights, the records and the states that enter the
lowest adapted layer, page by page, and a site is no more than the numbers of its rows. Each computes with one thread: a
vector depends neither on who computes it nor on how many there are, and sums are of integers.
"""

import hashlib
import mmap
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...client_node.study import PlannedRound, Study
from ...client_node.training.trainer import Trainer
from ...machine import die_with_parent
from ...models.errors import MetricUndefined
from ...mpc.sharing import Ring, shares
from ...mpc.sharing.ring import RingVector, from_integers
from ...privacy.mechanism.batches import RowStates, used_tokens
from ...privacy.mechanism.noise import discrete_gaussian
from ...privacy.mechanism.sampling import Integers
from ..errors import RunFailed
from .faults import hostile, is_refused
from .outcome import Plan
from .sites import Sites, Table, rows_of

T = TypeVar("T")

_MOST_STATES = 2**31  # bytes of states that are kept; where there are more, steps compute them
_TOGETHER, _MOST_SUMS = 64, 2**28  # sites whose units share batches; bytes of their sums
_TASKS = 2  # of a process in a round, so that none waits long for another; sites of one share batches


@dataclass(frozen=True, slots=True)
class States:
    """The states that enter the lowest adapted layer, of all records, in memory that processes share."""

    memory: torch.Tensor  # [tokens of all records, D]
    first: Integers  # [rows], where those of a record begin
    used: Integers  # [rows], their number

    @classmethod
    def room_for(cls, trainer: Trainer, table: Table) -> "States | None":
        """Makes room for them; None if steps start from tokens, or there are too many."""
        if trainer.states_of(rows_of(table.examples, np.zeros(0, np.int64))) is None:
            return None
        used = used_tokens(table.examples.ids, table.examples.targets)
        blank = trainer.adapted.entering(torch.ones(1, 2, dtype=torch.long))
        width, size = blank.shape[-1], int(used.sum()) * blank.shape[-1] * blank.dtype.itemsize
        if not 0 < size <= _MOST_STATES:
            return None
        memory = torch.frombuffer(mmap.mmap(-1, size), dtype=blank.dtype).view(-1, width)
        return cls(memory, np.cumsum([0, *used[:-1]]), used)

    def put(self, row: int, states: torch.Tensor) -> None:
        """Stores those of one record."""
        self.memory[self.first[row] : self.first[row] + self.used[row]] = states

    def at(self, rows: Integers) -> RowStates:
        """Gives what reads them, for a site with these rows."""

        def of(own: Integers) -> list[torch.Tensor]:
            places = rows[own].tolist()
            return [self.memory[self.first[row] : self.first[row] + self.used[row]] for row in places]

        return of


@dataclass(frozen=True, slots=True)
class Share:
    """The sum over some sites of a round."""

    sums: list[RingVector]  # one, or one for each of three aggregators
    refused: tuple[int, ...]  # sites that are not in it


@dataclass(frozen=True, slots=True)
class Bench:
    """All that a process needs to compute any site of a study."""

    study: Study
    trainer: Trainer  # that makes the sites' own
    sites: Sites
    plan: Plan
    malicious: frozenset[int]
    states: States | None
    vector: npt.NDArray[np.float32]  # [dim], what the round starts from; shared
    repetition: int = 0  # in mode "none", which of many runs of one study; 0: as the real one

    def fill(self, rows: Integers) -> None:
        """Computes the states of some records."""
        found = self.trainer.states_of(rows_of(self.sites.train.examples, rows))
        assert found is not None and self.states is not None, "there is room for states"  # noqa: PT018
        for place, states in found:
            self.states.put(int(rows[place]), states)

    def share(self, number: int, digest: str, own: Sequence[int]) -> Share:
        """Computes the vectors of some sites in a round, and adds those that the norm check lets pass.

        Args:
            digest: of what the round starts from.
            own: the sites.
        """
        planned, refused = self.study.planned_round(number), list[int]()

        def passing() -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
            for site, vector in self._vectors(own, planned):
                if site in self.malicious and is_refused(vector, planned, self._sketch_seed(site, number)):
                    refused.append(site)
                else:
                    yield site, vector

        return Share(self._added(passing(), planned, digest), tuple(refused))

    def topups(self, number: int, digest: str, own: Sequence[int], summed: int) -> Share:
        """Adds the noise by which some sites make up for the missing ones, in a sum over `summed` sites."""
        planned = self.study.planned_round(number)
        noise = self.study.topup_noise(planned, summed)
        drawn = ((site, discrete_gaussian(noise, planned.dim)) for site in own)
        return Share(self._added(drawn, planned, digest), ())

    def _added(
        self, vectors: Iterable[tuple[int, npt.NDArray[np.int64]]], planned: PlannedRound, digest: str
    ) -> list[RingVector]:
        ring = Ring(planned.ring_bits, planned.scale_bits)
        is_shared = self.plan.secret_sharing
        sums = [np.zeros(planned.dim, ring.unsigned) for _ in range(3 if is_shared else 1)]
        for site, vector in vectors:
            parts = self._split(vector, planned, site, digest) if is_shared else [from_integers(vector, ring)]
            for total, part in zip(sums, parts, strict=True):
                total += part
        return sums

    def measure(self, site: int, metric: str) -> float | None:
        """Measures the state in `vector` on one site's held-out records."""
        return value_of(measured(self.trainer, self.vector, self.sites.held_out.of(site)), metric)

    def _vectors(self, own: Sequence[int], planned: PlannedRound) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Yields sites with their vectors, as many at a time as there is memory for."""
        few = max(1, min(_TOGETHER, _MOST_SUMS // (8 * planned.dim)))
        for start in range(0, len(own), few):
            some = own[start : start + few]
            first, *others = (self._trainer(site) for site in some)
            for site, vector in zip(some, first.release_with(others, self.vector, planned.number), strict=True):
                if site in self.malicious:
                    vector = hostile(vector, self.study, planned, self.plan.faults.length)
                yield site, vector

    def _trainer(self, site: int) -> Trainer:
        rows = self.sites.train.rows_of_site[site]
        entering = None if self.states is None else self.states.at(rows)
        own = self.sites.train.of(site)
        return self.trainer.beside(self.sites.names[site], own, entering=entering, repetition=self.repetition)

    def _split(self, vector: npt.NDArray[np.int64], planned: PlannedRound, site: int, digest: str) -> list[RingVector]:
        """Splits a vector as its site would, and gives each aggregator's share of it."""
        context = self.study.share_context(planned, run="simulation", site=self.sites.names[site], state=digest)
        found = shares.split(from_integers(vector, context.ring), context, site % 3, [0] * context.tag_count)
        return [shares.unpack(each, context).vector for each in found]

    def _sketch_seed(self, site: int, number: int) -> bytes:
        return hashlib.sha256(f"confide/simulation/1|{self.plan.seed}|{number}|{site}".encode()).digest()


def measured(trainer: Trainer, state: npt.NDArray[np.float32], examples: Any) -> dict[str, Any]:
    """Computes metrics of a state on records; none where they are not defined."""
    if not len(examples.units):
        return {}
    trainer.adapted.load_state(state[: trainer.adapted.layout.dim])
    try:
        return trainer.model.evaluate([examples])
    except MetricUndefined:
        return {}


def value_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """Returns the value of one metric; None if it is not there."""
    return float(metrics[name]["value"]) if name in metrics else None


class Processes:
    """Processes that share a bench; with one, this process itself."""

    def __init__(self, bench: Bench, count: int, executor: ProcessPoolExecutor | None) -> None:
        self.count, self._bench, self._executor = count, bench, executor

    def each(self, call: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """Yields the place of each task and what `call`, an unbound method of the bench, gives for it.

        Raises:
            RunFailed: a process ended.
        """
        if self._executor is None:
            for place, task in enumerate(tasks):
                yield place, call(self._bench, *task)
            return
        try:  # also if it ended before it was given a task
            place_of: dict[Future[T], int] = {
                self._executor.submit(_call, call.__name__, *task): place for place, task in enumerate(tasks)
            }
            for done in as_completed(place_of):
                yield place_of[done], done.result()
        except BrokenProcessPool as err:
            raise RunFailed(
                "a process ended, perhaps for want of memory: take fewer --workers; rounds are kept"
            ) from err

    def chunks(self, items: Sequence[int]) -> list[list[int]]:
        """Divides items so that all processes are busy."""
        parts = min(len(items), self.count * _TASKS if self.count > 1 else 1)
        return [list(items[place::parts]) for place in range(parts)]


@contextmanager
def processes(bench: Bench, count: int) -> Iterator[Processes]:
    """Forks so many processes, which end with the block, or with this process."""
    with ExitStack() as stack:
        executor = None
        if count > 1:
            executor = ProcessPoolExecutor(count, get_context("fork"), initializer=_begin, initargs=(bench,))
            stack.callback(executor.shutdown, cancel_futures=True)
        yield Processes(bench, count, executor)


_bench: Bench | None = None  # of a forked process


def _begin(bench: Bench) -> None:
    global _bench
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that leads
    torch.set_num_threads(1)
    _bench = bench


def _call(name: str, *task: Any) -> Any:
    return getattr(_bench, name)(*task)
