import json
import stat

import pytest

from confide.privacy.errors import LedgerBroken, LedgerFileInvalid, LedgerForked
from confide.privacy.ledger import backup
from confide.privacy.ledger.chain import extend
from confide.privacy.ledger.ledger import Ledger, verify_chain

from ..ledgers import SITES, budget, charge, ledger_with, signer


@pytest.fixture
def ledger(tmp_path):
    """Entries 0 to 6."""
    with ledger_with(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def file(ledger, tmp_path):
    path = tmp_path / "kept.jsonl"
    backup.write(path, ledger.walk(), ledger.public_key)
    return path


@pytest.fixture
def restore(tmp_path, file):
    """Restores a file, the kept one if no other is named."""

    def run(at=tmp_path / "new.db", source=file, seed=1, site="east"):
        return Ledger.restore(at, backup.read(source), signer(seed), site)

    return run


def rewritten(file, change):
    lines = file.read_text().splitlines()
    file.write_text("".join(line + "\n" for line in change(lines)))


def test_a_ledger_lost_and_restored_is_the_ledger_that_was(ledger, restore, tmp_path):
    assert restore() == (7, 7)
    with Ledger.open(tmp_path / "new.db", signer(), "east") as again:
        assert again.entries() == ledger.entries()
        assert again.spent("thyroid", "patient", 1, 1e-5) == ledger.spent("thyroid", "patient", 1, 1e-5)
        again.reserve(charge(3))
        assert verify_chain(again.entries(), again.public_key) == again.head


def test_a_file_is_for_its_owner_and_never_written_over(ledger, file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(LedgerFileInvalid, match="exists already"):
        backup.write(file, ledger.walk(), ledger.public_key)
    assert file.read_bytes() == before


def test_restoring_twice_changes_nothing(restore):
    assert restore() == (7, 7)
    assert restore() == (0, 7)


def test_a_beginning_is_completed(ledger, restore, tmp_path, file):
    start = tmp_path / "start.jsonl"
    backup.write(start, ledger.entries()[:4], ledger.public_key)
    assert restore(source=start) == (4, 4)
    assert restore() == (3, 7)


def test_a_ledger_that_is_ahead_keeps_what_it_has(ledger, restore, tmp_path):
    ledger.reserve(charge(7))
    assert restore(at=tmp_path / "ledger.db") == (0, 8)
    assert ledger.entries()[-1].body["round"] == 7


def test_two_ledgers_that_both_went_on_are_refused(ledger, restore, tmp_path):
    restore()
    ledger.reserve(charge(7))
    later = tmp_path / "later.jsonl"
    backup.write(later, ledger.walk(), ledger.public_key)
    with Ledger.open(tmp_path / "new.db", signer(), "east") as other:
        other.reserve(charge(8))
        head = other.head
    with pytest.raises(LedgerForked, match="both went on after entry 6"):
        restore(source=later)
    with Ledger.open(tmp_path / "new.db", signer(), "east") as other:
        assert other.head == head


def test_a_ledger_begun_anew_without_a_charge_may_be_moved_away(restore, tmp_path):
    with Ledger.open(tmp_path / "new.db", signer(), "east") as fresh:
        fresh.set_budget(budget(3.0))
    with pytest.raises(LedgerForked, match=r"holds no charge.*move the ledger's files away"):
        restore()


@pytest.mark.parametrize(
    ("seed", "site", "why"), [(2, "east", "given public key"), (1, "west", "'east', not of 'west'")]
)
def test_another_keys_or_sites_ledger_is_refused(restore, tmp_path, seed, site, why):
    with pytest.raises(LedgerBroken, match=why):
        restore(seed=seed, site=site)
    with Ledger.open(tmp_path / "new.db", signer(seed), site) as untouched:
        assert len(untouched.entries()) == 1


CUTS = {
    "no end": (lambda lines: lines[:-1], "cut short"),
    "an entry less": (lambda lines: [*lines[:-2], lines[-1]], "line 8 does not end"),
    "more after the end": (lambda lines: [*lines, lines[1]], "line 9 does not end"),
    "nothing": (lambda lines: [], "cut short"),
    "another format": (lambda lines: ['{"format":"confide-ledger-file-2"}', *lines[1:]], "line 1"),
    "not canonical": (lambda lines: [lines[0], " " + lines[1], *lines[2:]], "line 2 is no object"),
    "no object": (lambda lines: [lines[0], "[]", *lines[2:]], "line 2 is no object"),
    "not JSON": (lambda lines: [lines[0], "{", *lines[2:]], "line 2 is not JSON"),
    "no entry": (lambda lines: [lines[0], "{}", *lines[2:]], "line 2: entry"),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_damaged_file_is_refused_and_nothing_is_kept_of_it(file, restore, tmp_path, case):
    change, why = CUTS[case]
    rewritten(file, change)
    with pytest.raises(LedgerFileInvalid, match=why):
        restore()
    with Ledger.open(tmp_path / "new.db", signer(), "east") as untouched:
        assert len(untouched.entries()) == 1


def test_a_line_without_end_is_not_read_whole(file, monkeypatch):
    monkeypatch.setattr(backup, "MAX_LINE", 300)
    with pytest.raises(LedgerFileInvalid, match="line 2 is longer than 300 bytes"):
        list(backup.read(file))


def test_too_many_entries_are_not_read(file, monkeypatch):
    monkeypatch.setattr(backup, "MAX_ENTRIES", 6)
    with pytest.raises(LedgerFileInvalid, match="more than 6 entries"):
        list(backup.read(file))


def test_a_changed_entry_is_refused(file, restore):
    def cheaper(lines):
        entry = json.loads(lines[3])
        entry["body"]["release"]["sample_rate"] = (0.01).hex()
        return [*lines[:3], json.dumps(entry, sort_keys=True, separators=(",", ":")), *lines[4:]]

    rewritten(file, cheaper)
    with pytest.raises(LedgerBroken, match="entry 2 was changed"):
        restore()


def test_an_entry_that_means_nothing_is_refused_though_signed(ledger, restore, tmp_path):
    wrong = extend(
        ledger.head, signer(), "2026-03-01T00:00:00Z", "settle", {"run": "x", "round": 1, "summed": ["east"]}
    )
    path = tmp_path / "wrong.jsonl"
    backup.write(path, [*ledger.entries(), wrong], ledger.public_key)
    with pytest.raises(LedgerBroken, match=r"entry 7 \(settle\): round 1 of run x was never reserved"):
        restore(source=path)


def test_a_ledger_with_a_damaged_signature_is_not_written(ledger, tmp_path):
    entries = ledger.entries()
    entries[2] = entries[2].model_copy(update={"signature": "0" * 128})
    with pytest.raises(LedgerBroken, match="entry 2 is not signed"):
        backup.write(tmp_path / "bad.jsonl", entries, ledger.public_key)
    assert not [path for path in tmp_path.iterdir() if "bad" in path.name]
    assert backup.write(tmp_path / "bad.jsonl", ledger.walk(), ledger.public_key) == ledger.head


def test_a_file_that_appears_while_another_is_written_is_kept(ledger, tmp_path):
    path = tmp_path / "kept.jsonl"

    def entries():
        yield from ledger.entries()
        path.write_text("older")

    with pytest.raises(LedgerFileInvalid, match="exists already"):
        backup.write(path, entries(), ledger.public_key)
    assert path.read_text() == "older"
    assert not list(tmp_path.glob(".kept*"))


def test_a_settled_round_stays_settled(restore, tmp_path):
    restore()
    with Ledger.open(tmp_path / "new.db", signer(), "east") as again:
        assert again.is_settled("run-1", 1)
        assert again.is_open("run-1", 3)
        again.settle("run-1", 3, SITES)
        assert again.spent("thyroid", "patient", 1, 1e-5).releases == 3
