"""Metrics as Prometheus reads them, of facts that are looked up when somebody asks.

No collector of the library's own is used: processor time, memory and garbage collections of a site's process depend on
the records that a step draws.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ... import __version__

if TYPE_CHECKING:
    from ...privacy.ledger.standings import Standing
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_ACCOUNT = ("site", "dataset", "unit")


def exposition(look: Callable[[], Iterable[Metric]]) -> Callable[[], bytes]:
    """Makes a function that looks up the metrics of `look` and writes them in Prometheus' text format."""

    class Looking(Collector):
        """The one collector of the registry."""

        def collect(self) -> Iterable[Metric]:
            return look()

    registry = CollectorRegistry()
    registry.register(Looking())
    return lambda: generate_latest(registry)


def gauge(name: str, told: str, value: float) -> Metric:
    """Makes a gauge without labels."""
    return GaugeMetricFamily(f"confide_{name}", told, value=value)


def gauges(name: str, told: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Makes a gauge with a value for each tuple of labels."""
    family = GaugeMetricFamily(f"confide_{name}", told, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def counter(name: str, told: str, value: float) -> Metric:
    """Makes a counter without labels; the format puts `_total` behind its name."""
    return CounterMetricFamily(f"confide_{name}", told, value=value)


def counters(name: str, told: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Makes a counter with a value for each tuple of labels."""
    family = CounterMetricFamily(f"confide_{name}", told, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def of_process(role: str, started: float) -> Iterator[Metric]:
    """Tells what runs here, and since when (seconds since 1970)."""
    info = InfoMetricFamily("confide_build", "The running program.")
    info.add_metric((), {"version": __version__, "python": ".".join(map(str, sys.version_info[:3])), "role": role})
    yield info
    yield gauge("start_time_seconds", "When this process began to serve, Unix time.", started)
    yield gauge("clock_time_seconds", "This machine's clock, Unix time.", time.time())


def of_disk(folder: Path) -> Iterator[Metric]:
    """Tells how much room the disk of a folder has. Raises OSError."""
    usage = shutil.disk_usage(folder)
    yield gauge("disk_free_bytes", "Free bytes of the home folder's disk.", usage.free)
    yield gauge("disk_size_bytes", "Size of the home folder's disk.", usage.total)


def of_certificates(found: Mapping[tuple[str, str], bytes]) -> Metric:
    """Tells when certificates (PEM) end, by kind and name of their owner; what is none is left out."""
    ends: dict[tuple[str, ...], float] = {}
    for label, pem in found.items():
        with suppress(ValueError, x509.InvalidVersion):
            ends[label] = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    told = "When a certificate ends, Unix time."
    return gauges("certificate_expiry_timestamp_seconds", told, ("certificate", "name"), ends)


def of_accounts(standings: Mapping[str, Iterable["Standing"]]) -> Iterator[Metric]:
    """Tells the budgets of data sets, by site, as signed ledgers have them."""
    found = {(site, each.dataset, each.unit): each for site, accounts in standings.items() for each in accounts}
    yield gauges(
        "epsilon_guaranteed", "Epsilon charged to a data set, by the filter that its cap goes by.", _ACCOUNT,
        {label: each.guaranteed for label, each in found.items()},
    )  # fmt: skip
    yield gauges(
        "epsilon_cap", "Cap of a data set's epsilon.", _ACCOUNT,
        {label: each.cap for label, each in found.items() if each.cap is not None},
    )  # fmt: skip
    yield gauges(
        "budget_filled_ratio", "Part of a data set's filter that is filled; at 1 nothing more is charged.", _ACCOUNT,
        {label: each.filled for label, each in found.items()},
    )  # fmt: skip
