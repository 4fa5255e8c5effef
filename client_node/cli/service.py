"""Serves adapters from a command, until it is stopped: the same at a site and at a coordinator."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import tell
from .options import DEFAULT_HOME, HomeOption

if TYPE_CHECKING:
    from ...listening import Listening
    from ...models.serving.served import Model
    from ...models.serving.server import Address, Bounds


class Format(StrEnum):
    """Formats in which the weights of a backbone can be served."""

    FLOAT32 = "float32"
    INT8 = "int8"


_MOST_BYTES = 1 << 19  # of a prefix

AdaptersArgument = Annotated[list[Path], typer.Argument(help="Exported adapters of the backbone, one or more.")]
HostOption = Annotated[str, typer.Option(help="Address to listen on; others than this machine need TLS and a token.")]
PortOption = Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token that requests show; made if there is none.")
]
CertificateOption = Annotated[Path | None, typer.Option(help="Certificate with its chain, PEM.")]
KeyOption = Annotated[Path | None, typer.Option(help="Key of the certificate, PEM.")]
PrefixOption = Annotated[
    list[Path] | None,
    typer.Option("--prefix", help="File with a text that many requests begin with, which is read once; repeatable."),
]
RowsOption = Annotated[int, typer.Option(min=1, max=1024, help="Texts that are written together.")]
WaitingOption = Annotated[int, typer.Option(min=1, max=100_000, help="Requests that may wait; more are told to retry.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="How the backbone's weights are held; int8 is smaller and faster.")
]
SecondsOption = Annotated[float, typer.Option(min=1, max=86_400, help="After so many a request is ended.")]


def serve(
    adapters: AdaptersArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    token_file: TokenOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    form: FormatOption = Format.FLOAT32,
    prefix: PrefixOption = None,
    rows: RowsOption = 16,
    waiting: WaitingOption = 128,
    seconds: SecondsOption = 120.0,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Serve adapters on the backbone of site.toml, over OpenAI's API, until stopped.

    A tool that speaks that API names an adapter as its model. Nothing that is asked or answered is logged or kept.
    """
    from ...models.serving.server import Address, Bounds
    from ..policy import load_policy

    address = Address(host=host, port=port, token_file=token_file, certificate=certificate, key=key)
    bounds = Bounds(rows=rows, waiting=waiting, seconds=seconds)
    serve_adapters(load_policy(home).backbone.directory, adapters, address, bounds, form, prefix or ())


def serve_adapters(
    backbone: Path,
    adapters: Sequence[Path],
    address: "Address",
    bounds: "Bounds",
    form: Format,
    prefixes: Sequence[Path] = (),
) -> None:
    """Loads what is to be served, says where it is found, and serves until SIGTERM or Ctrl-C."""
    from ...models.serving.served import Served
    from ...models.serving.server import require_closed, run

    require_closed(address)  # before the model is loaded
    texts = [_text_of(path) for path in prefixes]
    served = Served(backbone, adapters, frozen="int8" if form is Format.INT8 else "float32")

    def announce(listening: "Listening") -> None:
        scheme = "http" if address.certificate is None else "https"
        host = f"[{address.host}]" if ":" in address.host else address.host
        tell(f"Serving on {scheme}://{host}:{listening.port}/v1 until Ctrl-C:")
        for model in served.models.values():
            tell(f"  {model.name}: {'; '.join(said_of(model))}")

    run(served, address, bounds, announce, texts)


def _text_of(path: Path) -> str:
    from ...models.errors import ServiceRefused

    try:
        with path.open("rb") as file:
            found = file.read(_MOST_BYTES + 1)
        text = found.decode("utf-8")
    except OSError as err:
        raise ServiceRefused(f"{path} cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ServiceRefused(f"{path} is no text in UTF-8") from err
    if len(found) > _MOST_BYTES:
        raise ServiceRefused(f"{path} has more than {_MOST_BYTES:,} bytes, too many for a prefix")
    return text


def said_of(model: "Model") -> list[str]:
    """Says what one model does, and what its studies may tell of a person."""
    from ...models.rounding import figures_up, rounded_up

    does = "writes, and classifies by its head" if model.head is not None else "writes"
    told = [
        f"for one {spent.unit}, at most epsilon {rounded_up(spent.epsilon, 3)} at delta {figures_up(spent.delta)}"
        for spent in model.spent
    ]
    if model.unbounded:
        told.append(f"nothing bounds what it tells about the records of {', '.join(model.unbounded)}")
    return [does, *told] if model.sources else [does, "of no study"]
