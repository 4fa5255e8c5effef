"""The way from a node to its coordinator: TLS that trusts the federation's CA alone, by an HTTP proxy if one is set.

A proxy is asked for a tunnel (CONNECT), and TLS runs through it from end to end: it sees the coordinator's address and
how much is sent when, and nothing else. A proxy that opens TLS is met with a refusal, because its certificate is not
from the federation's CA. Proxies in the environment count only where the setting is `env`.
"""

import datetime as dt
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from ..errors import ProxyInvalid

if TYPE_CHECKING:  # a tenth of what a light command may take
    import httpx

ENVIRONMENT = "env"  # the setting that reads HTTPS_PROXY and NO_PROXY at every start
_PROXY = re.compile(r"http://(?:[^\s/@]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}/?")
_MOST_PORT = 65535
_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_...
_OTHER_NAME = (62, 64)  # of a host, of an address
_KEPT_S = 25.0  # an idle connection; a new one costs two round trips, and the gate ends its own after 30
_SUCCESSOR = "ask the operator for the statement about the new one, and take it: client-node ca accept FILE"


def check_proxy(setting: str) -> str:
    """Returns the setting as it is stored.

    Args:
        setting: `http://[USER:PASSWORD@]HOST:PORT`, or `env`.

    Raises:
        ProxyInvalid: it is neither.
    """
    setting = setting.strip()
    if setting == ENVIRONMENT:
        return setting
    if not _PROXY.fullmatch(setting) or int(setting.rstrip("/").rpartition(":")[2]) > _MOST_PORT:
        raise ProxyInvalid(
            "a proxy is written http://HOST:PORT or http://USER:PASSWORD@HOST:PORT (with %40 for @, %3A for :, %2F "
            "for / in the password), or is the word env"
        )
    return setting.rstrip("/")


def shown_proxy(setting: str | None) -> str:
    """Describes the setting without the user and password in it."""
    if setting is None:
        return "none"
    return setting if setting == ENVIRONMENT else setting.rpartition("@")[2].removeprefix("http://")


def open_client(address: str, context: ssl.SSLContext, proxy: str | None, timeout: float) -> "httpx.Client":
    """Opens an HTTP client for the coordinator at `address`; redirects are not followed.

    Raises:
        ProxyInvalid: `proxy` is no setting, or is `env` and the environment names no HTTP proxy.
    """
    import httpx

    url = _from_environment(address) if proxy == ENVIRONMENT else proxy and check_proxy(proxy)
    limits = httpx.Limits(keepalive_expiry=_KEPT_S)
    return httpx.Client(verify=context, timeout=timeout, trust_env=False, proxy=url or None, limits=limits)


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Makes a TLS 1.3 context that trusts the CA in `ca_pem`, or the two, and no other."""
    context = ssl.create_default_context(cadata=ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def certificate_trouble(err: BaseException, ca_path: Path | None = None) -> str | None:
    """Tells in words why the other side's certificate was refused; None if `err` is about something else.

    Args:
        ca_path: the CA certificate that was trusted; without it, an end of the CA itself is not recognised.
    """
    refused: BaseException | None = err
    while refused is not None and not isinstance(refused, ssl.SSLCertVerificationError):
        refused = refused.__cause__ or refused.__context__
    if refused is None:
        return None
    clock = dt.datetime.now(dt.UTC)
    here = f"by this machine's clock, {clock:%Y-%m-%d %H:%M} UTC"
    if refused.verify_code == _NOT_YET_VALID:
        return f"its certificate is not valid yet {here}; set the clock if it is behind. Nothing was sent"
    if refused.verify_code == _EXPIRED:
        if ca_path is not None and (end := _end_of(ca_path)) is not None and end < clock:
            return (
                f"this federation's CA ended on {end:%Y-%m-%d}, {here}; if the clock is right, {_SUCCESSOR}. "
                "Nothing was sent"
            )
        return (
            f"its certificate has expired {here}; if the clock is right, its operator must start `coordinator serve` "
            "anew, which renews it. Nothing was sent"
        )
    if refused.verify_code in _OTHER_NAME:
        return (
            "its certificate is from this federation's CA, but for another name or address than this. Nothing was sent"
        )
    return (
        "its certificate is not from this federation's CA: another server answers there, or a device on the way opens "
        f"TLS. If the CA has had a successor while this node was away, {_SUCCESSOR}. Nothing was sent"
    )


def connection_trouble(err: "httpx.TransportError", proxy: str | None) -> str:
    """Tells in words why there is no connection."""
    import httpx

    if isinstance(err, httpx.ProxyError):
        return f"the proxy {shown_proxy(proxy)} lets nothing through to it ({_told(err)})"
    if proxy is not None and isinstance(err, httpx.ConnectError | httpx.ConnectTimeout):
        return f"it does not answer by the proxy {shown_proxy(proxy)} ({_told(err)})"
    return f"it does not answer ({_told(err)})"


def _told(err: Exception) -> str:
    return (str(err) or type(err).__name__)[:200]


def _from_environment(address: str) -> str | None:
    from urllib.request import getproxies_environment, proxy_bypass

    proxies = getproxies_environment()
    if proxy_bypass(address, proxies):
        return None
    found = proxies.get("https") or proxies.get("all")
    if not found:
        raise ProxyInvalid("the proxy is set to env, but the environment has no HTTPS_PROXY")
    return check_proxy(found if "://" in found else f"http://{found}")


def _end_of(path: Path) -> dt.datetime | None:
    try:
        return max(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError):
        return None
