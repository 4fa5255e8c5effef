import subprocess
import sys

import pytest

from confide.coordinator.errors import Conflict
from confide.coordinator.federation import serving as serving_module
from confide.coordinator.federation.serving import SeenNode, Serving, note_serving, only_server, read_serving

NOTED = Serving(
    since=1.0, noted=2.0, version="0.2.0", superlink=True, worker=False, trouble="no room",
    nodes={"north": SeenNode(at=2.0)},
)  # fmt: skip


def test_nobody_serves_a_new_home(tmp_path):
    assert read_serving(tmp_path) is None


def test_what_a_server_notes_is_read_while_it_runs_and_not_afterwards(tmp_path):
    with only_server(tmp_path):
        note_serving(tmp_path, NOTED)
        assert read_serving(tmp_path) == NOTED
    assert read_serving(tmp_path) is None


@pytest.mark.parametrize("text", [None, "", "{", '{"since": "long ago"}'])
def test_a_server_that_has_noted_nothing_yet_starts(tmp_path, text):
    note_serving(tmp_path, NOTED)  # an earlier server's
    with only_server(tmp_path):
        if text is not None:
            (tmp_path / "serve.json").write_text(text)
        found = read_serving(tmp_path)
        assert found is not None
        assert (found.trouble, found.superlink) == ("it starts", False)


def test_a_second_server_on_one_home_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(serving_module, "_LOCK_TRIES", 2)
    with (
        only_server(tmp_path),
        pytest.raises(Conflict, match=r"serves .* already; stop it first"),
        only_server(tmp_path),
    ):
        pass


@pytest.mark.process
def test_a_killed_server_leaves_the_home_free(tmp_path):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from confide.coordinator.federation.serving import only_server\n"
        "with only_server(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"held\n"
        assert read_serving(tmp_path) is not None
        server.kill()
        server.wait()
        assert read_serving(tmp_path) is None
    with only_server(tmp_path):
        pass


def test_a_node_is_online_for_a_minute_after_its_last_request():
    assert SeenNode(at=100.0).was_online(150.0)
    assert not SeenNode(at=100.0).was_online(170.0)
