"""CrypTen, made safe to add shares with. The only module that imports it; load it in a party's process only.

Stock CrypTen must not touch a secret: its masks come from `torch.Generator`, whose CPU engine keeps 32 bits of a seed;
its default provider of triples shows everything that is multiplied to party 0; its links are plain Gloo and pickles.
Before the import its random numbers are replaced by AES-256-CTR, and afterwards its providers and links are replaced by
ones that refuse. What is left is arithmetic on additive shares, which for a sum is local. Whatever differs from the
version that this was written against raises `RuntimeUnsound`: it is never worked around.

Out of scope: multiplication, comparison, opening inside CrypTen. They need triples, and there is no provider.
"""

import secrets
import sys
import types
from collections.abc import Iterable
from importlib import metadata
from typing import Any, ClassVar, Never

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from .errors import PartyLost, RuntimeUnsound
from .fields import NUM_AGGREGATORS
from .links import TlsCommunicator
from .ring import Ring, RingVector

VERSION = "0.4.1"
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
    chosen = crypten.generators["local"].get(CPU) if generator is None else generator
    if not isinstance(chosen, Prg) or (device is not None and torch.device(device) != CPU):  # type: ignore[call-overload]
        raise RuntimeUnsound("CrypTen draws from a generator or device that is not ours")
    return chosen


def _refuse(*_: object, **__: object) -> Never:
    raise RuntimeUnsound("this part of CrypTen is not used here: it is unsound or not installed")


class _NoProvider:
    """Refuses every triple; whatever method is asked for."""

    def __getattr__(self, name: str) -> Never:
        raise RuntimeUnsound(f"CrypTen asks for {name}: there is no provider of triples")


def _stand_in(name: str, **attributes: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def _load() -> Any:
    """Imports CrypTen with our random numbers, and without ONNX and TensorBoard, which it imports needlessly."""
    if "crypten" in sys.modules:
        raise RuntimeUnsound("CrypTen was imported before its random numbers could be replaced")
    try:
        found = metadata.version("crypten")
    except metadata.PackageNotFoundError as err:
        raise RuntimeUnsound(f"CrypTen is not installed: pip install --no-deps crypten=={VERSION}") from err
    if found != VERSION:
        raise RuntimeUnsound(f"CrypTen {found} is installed; only {VERSION} was examined")
    _stand_in("crypten.common.rng", generate_random_ring_element=ring_element, generate_kbit_random_tensor=kbit)
    _stand_in(
        "crypten.nn.onnx_converter",
        from_onnx=_refuse,
        from_pytorch=_refuse,
        from_tensorflow=_refuse,
        TF_AND_TF2ONNX=False,
    )
    _stand_in("crypten.nn.tensorboard", SummaryWriter=_refuse)
    try:
        import crypten
    except (ImportError, AttributeError) as err:
        raise RuntimeUnsound(f"CrypTen {VERSION} does not import with torch {torch.__version__}: {err}") from err
    return crypten


crypten = _load()
import crypten.communicator as _communicator  # noqa: E402
from crypten.communicator import Communicator as _Communicator  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor  # noqa: E402


class PartyCommunicator(_Communicator):  # type: ignore[misc]  # CrypTen is untyped
    """What CrypTen may ask of the links: which party this is. All its messages raise NotImplementedError."""

    current: ClassVar["PartyCommunicator | None"] = None

    def __init__(self, aggregator_id: int) -> None:
        self._aggregator_id = aggregator_id

    @classmethod
    def is_initialized(cls) -> bool:
        """Whether links are up."""
        return cls.current is not None

    @classmethod
    def get(cls) -> "PartyCommunicator | None":
        """The links that are up."""
        return cls.current

    def get_rank(self) -> int:
        """This party's aggregator id."""
        return self._aggregator_id

    def get_world_size(self) -> int:
        """How many parties there are."""
        return NUM_AGGREGATORS


def start(links: TlsCommunicator) -> None:
    """Gives CrypTen its place among the parties and fresh generators, seeded in pairs over `links`.

    Raises:
        PartyLost: another party is gone, silent or sends no seed.
    """
    following = (links.aggregator_id + 1) % NUM_AGGREGATORS
    previous = (links.aggregator_id - 1) % NUM_AGGREGATORS
    seed = secrets.token_bytes(SEED_BYTES)
    received = links.exchange("SEED", {following: seed, previous: b""}, SEED_BYTES)[previous]
    if len(received) != SEED_BYTES:
        raise PartyLost(f"aggregator {previous} sends no seed")
    stop()
    crypten.generators["next"][CPU] = Prg(seed)
    crypten.generators["prev"][CPU] = Prg(received)
    crypten.generators["local"][CPU] = Prg(secrets.token_bytes(SEED_BYTES))
    PartyCommunicator.current = PartyCommunicator(links.aggregator_id)


def stop() -> None:
    """Forgets the generators and the place among the parties."""
    for generators in crypten.generators.values():
        generators.clear()
    PartyCommunicator.current = None


def add_shares(vectors: Iterable[RingVector], ring: Ring) -> RingVector:
    """This party's share of a sum, from its shares of the summands: one at least, each with memory of its own.

    CrypTen adds modulo 2**64; 32-bit shares are reduced at the end, since 2**32 divides 2**64.
    """
    total: Any = None
    for vector in vectors:
        words = vector.view(np.int64) if ring.bits == 64 else vector.astype(np.int64)
        share = ArithmeticSharedTensor.from_shares(torch.from_numpy(words), precision=0)  # integers: no scaling
        total = share if total is None else total.add_(share)
    units: RingVector = total.share.numpy().view(np.uint64)
    return units.astype(ring.unsigned)  # keeps the low bits


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
    providers["none"] = _NoProvider()
    crypten.cfg.mpc.provider = "none"
    crypten.cfg.encoder.precision_bits = 0
    if crypten.generators != {"prev": {}, "next": {}, "local": {}, "global": {}}:
        raise RuntimeUnsound("CrypTen's generators are not where they were")
    ours = {"generate_random_ring_element": ring_element, "generate_kbit_random_tensor": kbit}
    for name, module in list(sys.modules.items()):
        found = {key: getattr(module, key, function) for key, function in ours.items()}
        if name.partition(".")[0] == "crypten" and found != ours:
            raise RuntimeUnsound(f"{name} holds a random generator that was not replaced")


_disarm()
