"""CrypTen, made safe to compute with. The only module that imports it; load it in a party's process only.

Stock CrypTen must not touch a secret: its masks come from `torch.Generator`, whose CPU engine keeps 32 bits of a seed;
its default provider of triples shows everything that is multiplied to party 0; its links are plain Gloo and pickles.
Before the import its random numbers are replaced by AES-256-CTR, and afterwards its providers are emptied and its links
replaced by ours. Whatever differs from the version that this was written against raises `RuntimeUnsound`: it is never
worked around. That version comes with confide, in third_party/crypten, byte for byte as published; another one that
may be installed is not looked at.

What it can do between `start` and `stop`: add, open, and, with triples from the provider named in `using`, multiply,
AND, compare and convert between additive and XOR shares. Without a provider everything that needs triples is refused.
What it cannot: truncate, or draw randomness that all three know. So all tensors have precision 0, integers, and a
square is `x * x`: CrypTen's `x.square()` truncates even then.

All of a party's state (links, generators, provider) belongs to the thread that called `start`, where CrypTen keeps
module globals: a process may run several parties, and one that was not started opens nothing.
"""

import secrets
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Never

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import PartyLost, RuntimeUnsound
from ..fields import NUM_AGGREGATORS
from ..links.tls import Links

VERSION = "0.4.1"
_SOURCE = Path(__file__).parents[2] / "third_party" / "crypten" / "crypten"  # beside the folder `mpc`
CPU = torch.device("cpu")
SEED_BYTES = 32


class Prg:
    """An AES-256-CTR stream of ring elements; stands where CrypTen expects a `torch.Generator`."""

    device = CPU

    def __init__(self, seed: bytes) -> None:
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()

    def elements(self, size: Iterable[int]) -> torch.Tensor:
        """The next uniform elements modulo 2**64, as int64 of shape `size`."""
        out = torch.zeros(tuple(size), dtype=torch.long)
        if out.numel():
            view = out.view(-1).numpy().data.cast("B")
            self._stream.update_into(view, view)
        return out


def ring_element(
    size: Iterable[int], ring_size: int = 2**64, generator: Prg | None = None, device: object = None
) -> torch.Tensor:
    """Replaces `crypten.common.rng.generate_random_ring_element`."""
    if ring_size != 2**64:
        raise RuntimeUnsound(f"CrypTen asks for random elements modulo {ring_size}")
    return _prg(generator, device).elements(size)


def kbit(
    size: Iterable[int], bitlength: int | None = None, generator: Prg | None = None, device: object = None
) -> torch.Tensor:
    """Replaces `crypten.common.rng.generate_kbit_random_tensor`."""
    full = _prg(generator, device).elements(size)
    return full if bitlength in (None, 64) else full & ((1 << bitlength) - 1)


def _prg(generator: object, device: object) -> Prg:
    chosen = _party().generators["local"] if generator is None else generator
    if not isinstance(chosen, Prg) or (device is not None and torch.device(device) != CPU):  # type: ignore[call-overload]
        raise RuntimeUnsound("CrypTen draws from a generator or device that is not ours")
    return chosen


def _refuse(*_: object, **__: object) -> Never:
    raise RuntimeUnsound("this part of CrypTen is not used here: it is unsound or not installed")


class NoProvider:
    """Refuses every triple; providers derive from it and so refuse what they do not give."""

    def __getattr__(self, name: str) -> Never:
        raise RuntimeUnsound(f"CrypTen asks for {name}: there is no provider of it")


def _stand_in(name: str, **attributes: object) -> None:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def _load() -> Any:
    """Imports confide's copy of CrypTen with our random numbers; empty stand-ins are its neural networks, unused."""
    if "crypten" in sys.modules:
        raise RuntimeUnsound("CrypTen was imported before its random numbers could be replaced")
    _stand_in("crypten.common.rng", generate_random_ring_element=ring_element, generate_kbit_random_tensor=kbit)
    _stand_in("crypten.nn")
    _stand_in("crypten.optim")
    spec = spec_from_file_location("crypten", _SOURCE / "__init__.py", submodule_search_locations=[str(_SOURCE)])
    if spec is None or spec.loader is None or not (_SOURCE / "__init__.py").is_file():
        raise RuntimeUnsound(f"CrypTen is missing at {_SOURCE}, where confide brings it: install confide anew")
    module = sys.modules["crypten"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, AttributeError, OSError) as err:
        raise RuntimeUnsound(f"CrypTen {VERSION} does not import with torch {torch.__version__}: {err}") from err
    if module.__version__ != VERSION:
        raise RuntimeUnsound(f"CrypTen {module.__version__} is at {_SOURCE}; only {VERSION} was examined")
    return module


crypten = _load()
import crypten.communicator as _communicator  # noqa: E402
from crypten.communicator import Communicator as _Communicator  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor as ArithmeticSharedTensor  # noqa: E402
from crypten.mpc.primitives import BinarySharedTensor as BinarySharedTensor  # noqa: E402

_ELEMENTS = {torch.int64: "<i8", torch.int32: "<i4"}  # rings of 64 and 32 bits
OPEN = "OPEN"
_SUM, _XOR = torch.distributed.ReduceOp.SUM, torch.distributed.ReduceOp.BXOR


class PartyCommunicator(_Communicator):  # type: ignore[misc]  # CrypTen is untyped
    """The messages that CrypTen sends on additive and XOR shares, over our links.

    A message is the little-endian elements of one or several tensors, all int64 or all int32, whose sizes all parties
    know: another size is a party out of step. Whatever CrypTen does not ask for on shares (objects, scatter, barriers)
    stays refused: the base class raises NotImplementedError. A lost party is `PartyLost`, no RuntimeError, which
    CrypTen would catch.
    """

    def __init__(self, links: Links) -> None:
        self._links = links
        self.step = OPEN  # what an opening to all is called on the links

    @classmethod
    def is_initialized(cls) -> bool:
        """True if this thread has links up."""
        return _here.party is not None

    @classmethod
    def get(cls) -> "PartyCommunicator":
        """This thread's links."""
        return _party().communicator

    def get_rank(self) -> int:
        """This party's aggregator id."""
        return self._links.aggregator_id

    def get_world_size(self) -> int:
        """The number of parties."""
        return NUM_AGGREGATORS

    def all_reduce(self, input: Any, op: Any = _SUM, batched: bool = False) -> Any:
        """The sum (or XOR) over the parties of a tensor, or of each of a list if `batched`; to all parties.

        Raises:
            PartyLost: a party is gone, silent or sends another size.
        """
        tensors = input if batched else [input]
        mine = _to_bytes(tensors)
        totals = _combine(tensors, self._links.all_gather(self.step, mine, len(mine)), op)
        return totals if batched else totals[0]

    def reduce(self, input: Any, dst: int, op: Any = _SUM, batched: bool = False) -> Any:
        """Sums (or XORs) as `all_reduce`, to party `dst` alone; None at the others."""
        tensors = input if batched else [input]
        mine, rank = _to_bytes(tensors), self.get_rank()
        others = [party for party in range(NUM_AGGREGATORS) if party != rank]
        outgoing = {party: mine if party == dst else b"" for party in others}
        received = self._links.exchange("OPTO", outgoing, len(mine) if rank == dst else 0)
        if rank != dst:
            return None
        totals = _combine(tensors, [mine, *received.values()], op)
        return totals if batched else totals[0]


def _to_bytes(tensors: list[torch.Tensor]) -> bytes:
    kind = _element(tensors)
    return b"".join(tensor.numpy().astype(kind, copy=False).tobytes() for tensor in tensors)


def _element(tensors: list[torch.Tensor]) -> str:
    """How an element of the tensors, which are all of one ring, travels."""
    kinds = {_ELEMENTS.get(tensor.dtype) for tensor in tensors if tensor.device == CPU}
    if len(kinds) != 1 or (kind := kinds.pop()) is None or any(tensor.device != CPU for tensor in tensors):
        raise RuntimeUnsound("CrypTen sends something else than elements of one ring")
    return kind


def _combine(tensors: list[torch.Tensor], gathered: list[bytes], op: object) -> list[torch.Tensor]:
    """The parties' `gathered` messages, summed or XORed, in the shapes of `tensors`."""
    if op not in (_SUM, _XOR):
        raise RuntimeUnsound(f"CrypTen combines shares by {op}")
    if len({len(data) for data in gathered}) != 1:
        raise PartyLost("another party is out of step")
    total, *others = (np.frombuffer(data, _element(tensors)) for data in gathered)
    total = total.copy()
    for other in others:  # in place, so in the ring of the elements: a reduction would widen int32
        (np.add if op == _SUM else np.bitwise_xor)(total, other, out=total)
    parts = np.split(total, np.cumsum([tensor.numel() for tensor in tensors[:-1]], dtype=np.intp))
    return [torch.from_numpy(part).reshape(one.shape) for part, one in zip(parts, tensors, strict=True)]


@dataclass(slots=True)
class _Party:
    """One party's links, generators and provider of triples."""

    communicator: PartyCommunicator
    generators: dict[str, Prg]  # "prev" and "next" shared with that neighbour, "local" with nobody
    provider: object


class _Here(threading.local):
    party: _Party | None = None


_here = _Here()


def _party() -> _Party:
    if _here.party is None:
        raise RuntimeUnsound("CrypTen is used where no party was started")
    return _here.party


class _Generators(Mapping[torch.device, Prg]):
    """One kind of CrypTen's generators: of the party in this thread, on the CPU, ours. Nobody can put in another."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getitem__(self, device: torch.device) -> Prg:
        if device != CPU or self._kind not in _party().generators:
            raise RuntimeUnsound(f"CrypTen asks for generator {self._kind} on {device}")
        return _party().generators[self._kind]

    def __iter__(self) -> Iterator[torch.device]:
        return iter((CPU,) if _here.party is not None and self._kind in _here.party.generators else ())

    def __len__(self) -> int:
        return len(tuple(iter(self)))


class _ProviderInUse:
    """Stands for CrypTen's provider: passes everything on to the one that this thread's party uses now."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_party().provider, name)


def start(links: Links) -> None:
    """Gives CrypTen, in this thread, its place among the parties and fresh generators, seeded in pairs over `links`.

    Raises:
        PartyLost: another party is gone, silent or sends no seed.
    """
    following = (links.aggregator_id + 1) % NUM_AGGREGATORS
    previous = (links.aggregator_id - 1) % NUM_AGGREGATORS
    seed = secrets.token_bytes(SEED_BYTES)
    received = links.exchange("SEED", {following: seed, previous: b""}, SEED_BYTES)[previous]
    if len(received) != SEED_BYTES:
        raise PartyLost(f"aggregator {previous} sends no seed")
    generators = {"next": Prg(seed), "prev": Prg(received), "local": Prg(secrets.token_bytes(SEED_BYTES))}
    _here.party = _Party(PartyCommunicator(links), generators, NoProvider())


def stop() -> None:
    """Forgets this thread's generators, provider and place among the parties."""
    _here.party = None


@contextmanager
def using(provider: object) -> Iterator[None]:
    """Lets CrypTen take triples from `provider` inside the block; all parties must use the same kind."""
    party = _party()
    before, party.provider = party.provider, provider
    try:
        yield
    finally:
        party.provider = before


def opened(tensor: ArithmeticSharedTensor, step: str) -> torch.Tensor:
    """Opens a tensor to all parties, at a step of the order that has a name of its own.

    Raises:
        PartyLost: a party is gone, silent or sends another size.
    """
    communicator = _party().communicator
    communicator.step = step
    try:
        revealed: torch.Tensor = tensor.reveal()
    finally:
        communicator.step = OPEN
    return revealed


def aggregator_id() -> int:
    """The id of the party that this thread runs."""
    return _party().communicator.get_rank()


def pairwise(size: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform ring elements that this party has in common with the previous and with the next party."""
    shape, generators = tuple(size), _party().generators
    return generators["prev"].elements(shape), generators["next"].elements(shape)


def _replace(owner: object, name: str, value: object) -> None:
    """Sets what must be there already, so that a renamed part is noticed."""
    if not hasattr(owner, name):
        raise RuntimeUnsound(f"CrypTen has no {name} to replace")
    setattr(owner, name, value)


def _disarm() -> None:
    """Replaces links, providers and set-up of the imported CrypTen, and checks that no stock generator is left."""
    _replace(_communicator, "DistributedCommunicator", PartyCommunicator)
    _replace(crypten, "init", _refuse)
    _replace(crypten, "init_thread", _refuse)
    _replace(crypten, "_setup_prng", _refuse)
    providers = crypten.mpc.__dict__.get("__SUPPORTED_PROVIDERS")
    if not isinstance(providers, dict) or providers.keys() != {"TFP", "TTP", "HE"}:
        raise RuntimeUnsound("CrypTen's list of triple providers is not where it was")
    providers.clear()
    providers["in use"] = _ProviderInUse()
    crypten.cfg.mpc.provider = "in use"
    crypten.cfg.encoder.precision_bits = 0
    if crypten.generators != {"prev": {}, "next": {}, "local": {}, "global": {}}:
        raise RuntimeUnsound("CrypTen's generators are not where they were")
    crypten.generators.update({kind: _Generators(kind) for kind in crypten.generators})
    ours = {"generate_random_ring_element": ring_element, "generate_kbit_random_tensor": kbit}
    for name, module in list(sys.modules.items()):
        found = {key: getattr(module, key, function) for key, function in ours.items()}
        if name.partition(".")[0] == "crypten" and found != ours:
            raise RuntimeUnsound(f"{name} holds a random generator that was not replaced")


_disarm()
