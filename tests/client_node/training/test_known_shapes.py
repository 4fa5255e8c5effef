import stat

import pytest
import torch

from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training import known_shapes
from confide.client_node.training.known_shapes import FILE, MAX_KNOWN, KnownShapes
from confide.client_node.training.study_model import load_study_model
from confide.client_node.training.warm_model import WarmModel
from confide.privacy.mechanism.batches import ONE_BY_ONE, BatchShapes, probed_shapes

from ..test_node import Desk, make_desk

FOUND = BatchShapes({32: (64, 32, 16), 48: (40, 20)}, threads=1)


@pytest.fixture
def desk(site) -> Desk:
    return make_desk(site)


@pytest.fixture
def adapted(desk):
    policy = load_policy(desk.site.home)
    return load_study_model(desk.study.draft, policy.backbone.directory, expected_hash=desk.study.backbone_hash).adapted


class Probe:
    """Counts how often shapes are looked for."""

    def __init__(self, found: BatchShapes = FOUND) -> None:
        self.found, self.count = found, 0

    def __call__(self) -> BatchShapes:
        self.count += 1
        return self.found


@pytest.mark.parametrize("found", [FOUND, ONE_BY_ONE], ids=["several", "one by one"])
def test_a_restart_finds_what_was_found_before(desk, adapted, tmp_path, found):
    probe = Probe(found)
    for _ in range(3):
        assert KnownShapes(tmp_path).find(desk.study, adapted, 64, probe) == found
    assert probe.count == 1
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "what", ["study", "rows", "threads", "library", "setting", "segments", "preloaded", "code", "processor"]
)
def test_what_a_finding_depends_on_makes_another_one(desk, adapted, tmp_path, make_study, monkeypatch, what):
    probe, study, rows = Probe(), desk.study, 64
    KnownShapes(tmp_path).find(study, adapted, rows, probe)
    before = torch.get_num_threads()
    if what == "study":
        study = make_study(('name = "thyroid"', 'name = "another"'))
    elif what == "rows":
        rows = 32
    elif what == "threads":
        torch.set_num_threads(before + 1)
    elif what == "library":
        monkeypatch.setattr(torch.__config__, "show", lambda: "another build")
    elif what == "setting":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    elif what == "segments":
        monkeypatch.setenv("CONFIDE_SEGMENTS_BACKEND", "torch")
    elif what == "preloaded":
        monkeypatch.setenv("LD_PRELOAD", "libmimalloc.so")
    else:
        monkeypatch.setattr(known_shapes, f"_{what}", lambda: "another")
    try:
        KnownShapes(tmp_path).find(study, adapted, rows, probe)
    finally:
        torch.set_num_threads(before)
    assert probe.count == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"shapes": {"x": 1}}', b'{"shapes": {"' + b"0" * 64 + b'": {"threads": 1}}}']
)
def test_a_damaged_file_is_named_and_replaced(desk, adapted, tmp_path, caplog, content):
    probe = Probe()
    (tmp_path / FILE).write_bytes(content)
    assert KnownShapes(tmp_path).find(desk.study, adapted, 64, probe) == FOUND
    assert str(tmp_path / FILE) in caplog.text
    assert KnownShapes(tmp_path).find(desk.study, adapted, 64, probe) == FOUND
    assert probe.count == 1


def test_a_disk_without_room_keeps_nobody_from_computing(desk, adapted, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(known_shapes, "write_private", full)
    assert KnownShapes(tmp_path).find(desk.study, adapted, 64, Probe()) == FOUND
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    ("name", "cpuinfo"),
    [
        ("x86", "processor\t: 0\nmodel name\t: Intel\nflags\t\t: avx512f\ncpu MHz\t\t: {mhz}\n\nprocessor\t: 1\n"),
        ("arm", "processor\t: 0\nBogoMIPS\t: {mhz}\nFeatures\t: sve bf16\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"),
    ],
)
def test_a_processor_is_known_by_all_but_what_changes_by_itself(tmp_path, monkeypatch, name, cpuinfo):
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(known_shapes, "_CPUINFO", told)
    told.write_text(cpuinfo.format(mhz="2000.0"))
    first = known_shapes._processor()
    told.write_text(cpuinfo.format(mhz="3100.5"))
    assert known_shapes._processor() == first
    told.write_text(cpuinfo.replace("avx512f", "avx2").replace("0xd40", "0xd4f"))
    assert known_shapes._processor() != first


def test_nothing_is_remembered_where_nothing_tells_one_processor_from_another(desk, adapted, tmp_path, monkeypatch):
    monkeypatch.setattr(known_shapes, "_CPUINFO", tmp_path / "none")
    probe = Probe()
    for _ in range(2):
        KnownShapes(tmp_path).find(desk.study, adapted, 64, probe)
    assert probe.count == 2
    assert not (tmp_path / FILE).exists()


def test_our_own_code_is_known_by_every_line(monkeypatch, tmp_path):
    monkeypatch.setattr(known_shapes, "__file__", str(tmp_path / "client_node" / "training" / "known_shapes.py"))
    for folder in ("client_node/study", "kernels", "models/adapters", "privacy/mechanism"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "code.py").write_text("x = 1\n")
    seen = {known_shapes._code()}
    for file in tmp_path.rglob("code.py"):
        file.write_text("x = 2\n")
        seen.add(known_shapes._code())
    assert len(seen) == 5


def test_the_oldest_are_forgotten(desk, adapted, tmp_path):
    for rows in range(1, MAX_KNOWN + 2):
        KnownShapes(tmp_path).find(desk.study, adapted, rows, Probe())
    first, last = Probe(), Probe()
    KnownShapes(tmp_path).find(desk.study, adapted, MAX_KNOWN + 1, last)
    KnownShapes(tmp_path).find(desk.study, adapted, 1, first)
    assert (last.count, first.count) == (0, 1)


def test_a_site_computes_in_the_shapes_that_a_probe_finds_also_after_a_restart(desk, adapted):
    policy, home = load_policy(desk.site.home), desk.site.home
    data = desk.study.draft.data
    limits = policy.limits
    torch.set_num_threads(limits.threads)
    wanted = probed_shapes(
        adapted,
        max_tokens=data.max_tokens,
        max_rows=limits.max_rows_per_batch,
        max_records=data.max_records_per_unit,
    )
    assert [WarmModel("svi", home).load(desk.study, policy)._shapes for _ in range(2)] == [wanted, wanted]
    assert (home / FILE).exists()
