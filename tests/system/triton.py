"""A real Triton server for a folder that `coordinator adapter deploy` wrote, in a Python without confide."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from confide.machine import free_ports

from .conftest import wait_for


@dataclass(frozen=True)
class Triton:
    """A folder for a Triton server, and the Python that runs it."""

    folder: Path
    python: Path
    model: str
    http: int
    grpc: int

    @classmethod
    def of(cls, folder: Path, factory: pytest.TempPathFactory) -> "Triton":
        """Installs what the folder asks for, in an environment that all workers share."""
        root = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
        python = root / "triton-python" / "bin" / "python"
        with (root / "triton-python.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not python.exists():
                subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "-r", str(folder / "requirements.txt")], check=True)
        (model,) = (path.name for path in (folder / "models").iterdir())
        return cls(folder, python, model, *free_ports(2))

    @contextmanager
    def served(self) -> Iterator[None]:
        """Runs the server."""
        words = [str(self.python), str(self.folder / "start.py"), *self._ports]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: self._is_ready() or server.poll() is not None, "the server", seconds=120)
            assert server.poll() is None
            yield
        finally:
            server.terminate()
            server.wait(60)

    def asked(self, *words: str) -> list[dict[str, Any]]:
        """Answers that the folder's own `ask.py` prints."""
        command = [str(self.python), str(self.folder / "ask.py"), *words, *self._ports]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def over_http(self, request: object) -> dict[str, Any]:
        """Asks by Triton's own protocol (KServe's, version 2), as any client may."""
        given = {"name": "REQUEST", "shape": [1, 1], "datatype": "BYTES", "data": [json.dumps(request)]}
        answer = httpx.post(self.url(f"models/{self.model}/infer"), json={"inputs": [given]}, timeout=60).json()
        told: dict[str, Any] = json.loads(answer["outputs"][0]["data"][0])
        return told

    def statistics(self) -> dict[str, int]:
        """Counts what the server has computed."""
        found: dict[str, int] = httpx.get(self.url(f"models/{self.model}/stats")).json()["model_stats"][0]
        return found

    def url(self, path: str) -> str:
        """Address of a part of the server."""
        return f"http://127.0.0.1:{self.http}/v2/{path}"

    @property
    def _ports(self) -> list[str]:
        return ["--http-port", str(self.http), "--grpc-port", str(self.grpc)]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(self.url("health/ready")).status_code == 200
        except httpx.TransportError:
            return False
