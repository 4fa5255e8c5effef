"""Starts a Triton server for the models of a folder, and asks it. start.py and ask.py run this.

The server is the one in the package nvidia-pytriton, which also runs without a GPU. A server of your own takes the
folder `models` as it is, if its backend for Python finds the packages of requirements.txt.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from .asking import parser_of_requests, requests_of, use_utf8
from .description import load
from .triton_model import ANSWER, REQUEST

_TOGETHER, _BYTES = 64, 1 << 25  # requests that are sent together, and their bytes, if there is more than one
_SECONDS = 600.0
_CLOSED = "model-repository,logging,trace,shared-memory"


def start() -> None:
    """Runs a Triton server, on this machine alone unless told otherwise."""
    arguments = _addresses(argparse.ArgumentParser(description="Serve the models of this folder until Ctrl-C."))
    arguments.add_argument("--host", default="127.0.0.1", help="address to listen on; Triton asks nobody for a token")
    given = arguments.parse_args()
    folder = Path(sys.argv[0]).resolve().parent
    try:
        import pytriton
    except ImportError:
        sys.exit("the server is not installed here: pip install -r requirements.txt; nothing was started")
    package = Path(pytriton.__file__).parent
    parts, libraries = package / "tritonserver", package.parent / "nvidia_pytriton.libs"
    stub = parts / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.exists():
        sys.exit(f"the server has no backend for this Python ({sys.version.split()[0]}); nothing was started")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    server: list[subprocess.Popen[bytes]] = []

    def end(number: int, _: object) -> None:
        for each in server:
            each.terminate()
        if not server:
            raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with tempfile.TemporaryDirectory(prefix="triton-backends-") as backends:
        shutil.copytree(parts / "backends" / "python", Path(backends) / "python")
        for path in stub.iterdir():
            shutil.copy(path, Path(backends) / "python")
        # Whoever reaches the server may ask models and nothing else: the header that allows more is drawn anew, and
        # known to those alone who see the processes of this machine.
        closed = f"{_CLOSED}:x-{secrets.token_hex(16)}={secrets.token_hex(16)}"
        command = [
            str(parts / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}",
            f"--backend-directory={backends}", f"--http-address={given.host}", f"--http-port={given.http_port}",
            f"--grpc-address={given.host}", f"--grpc-port={given.grpc_port}", "--allow-metrics=false",
            f"--http-restricted-api={closed}", f"--grpc-restricted-protocol={closed}",
        ]  # fmt: skip
        server.append(subprocess.Popen(command, env=environment))
        sys.exit(_ended(server[0]))


def _ended(server: "subprocess.Popen[bytes]") -> int:
    """Waits for the server to end; Ctrl-C reaches it as well."""
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            continue


def ask() -> None:
    """Asks a running server what the command line asks for."""
    use_utf8()
    given = _addresses(parser_of_requests())
    given.add_argument("--grpc", action="store_true", help="ask over gRPC, not over HTTP")
    given.add_argument("--server", default="127.0.0.1", help="address of the server")
    arguments = given.parse_args()
    (model,) = (Path(sys.argv[0]).resolve().parent / "models").iterdir()
    client, kind = _client(arguments)
    try:
        requests = requests_of(arguments, load(model / "1").request)
        is_wrong = False
        for some in _bundles(requests):
            answers = _answered(client, kind, model.name, [each for each in some if isinstance(each, bytes)])
            for each in some:
                answer = next(answers) if isinstance(each, bytes) else json.dumps({"error": str(each)}).encode()
                is_wrong |= "error" in json.loads(answer)
                print(answer.decode(), flush=True)
    except (ModelError, OSError, kind.InferenceServerException) as err:
        sys.exit(f"{err}; nothing more was answered")
    sys.exit(1 if is_wrong else 0)


def _bundles(requests: Iterable[Any]) -> Iterator[list[bytes | ModelError]]:
    """Puts requests together, so many and of so many bytes; what is none stays in its place."""
    some: list[bytes | ModelError] = []
    size = 0
    for each in requests:
        cell = each if isinstance(each, ModelError) else json.dumps(each).encode()
        more = len(cell) if isinstance(cell, bytes) else 0
        if some and (len(some) == _TOGETHER or size + more > _BYTES):
            yield some
            some, size = [], 0
        some.append(cell)
        size += more
    if some:
        yield some


def _addresses(arguments: argparse.ArgumentParser) -> argparse.ArgumentParser:
    arguments.add_argument("--http-port", type=int, default=8000)
    arguments.add_argument("--grpc-port", type=int, default=8001)
    return arguments


def _client(arguments: argparse.Namespace) -> tuple[Any, Any]:
    if arguments.grpc:
        import tritonclient.grpc as kind

        return kind.InferenceServerClient(f"{arguments.server}:{arguments.grpc_port}"), kind
    import tritonclient.http as kind

    address = f"{arguments.server}:{arguments.http_port}"
    return kind.InferenceServerClient(address, network_timeout=_SECONDS), kind


def _answered(client: Any, kind: Any, model: str, cells: list[bytes]) -> Iterator[bytes]:
    if not cells:
        return
    given = kind.InferInput(REQUEST, [len(cells), 1], "BYTES")
    given.set_data_from_numpy(np.array(cells, dtype=np.object_)[:, None])
    yield from client.infer(model, [given]).as_numpy(ANSWER).reshape(-1)
