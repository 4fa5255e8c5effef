import os

import pytest
import torch
from safetensors.torch import save

from confide.client_node.data import archive
from confide.client_node.errors import ArchiveRefused
from confide.models.errors import BackboneMismatch
from confide.models.space.embedding import Embedder

from ...models.space.conftest import COLOURS, TONES, backbone, built, png, wav

__all__ = ["backbone", "built"]  # fixtures


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "archive"
    (own / "more").mkdir(parents=True)
    for name, colour in COLOURS.items():
        (own / f"{name}.png").write_bytes(png(colour))
        (own / "more" / f"{name}.wav").write_bytes(wav(TONES[name]))
        (own / f"{name}.txt").write_text(f"a {name} thing\n")
    return own


@pytest.fixture
def embedder(built, backbone):
    return Embedder(built[0], backbone)


def first(found, kind):
    return next(each.name for each in found if each.kind == kind)


def test_each_kind_of_question_finds_each_kind_of_file(folder, embedder):
    index = archive.indexed(folder, embedder, None).index
    assert len(index.entries) == 12
    for name in COLOURS:
        for text in (f"a {name} thing", str(folder / f"{name}.png")):
            found = archive.nearest(index, archive.question(text, embedder), 2)
            assert first(found, "picture") == f"{name}.png"
            assert [each.kind for each in found] == ["picture"] * 2 + ["sound"] * 2 + ["text"] * 2
        found = archive.nearest(index, archive.question(str(folder / "more" / f"{name}.wav"), embedder), 1)
        assert first(found, "sound") == f"more/{name}.wav"


def test_an_index_is_read_as_it_was_written_and_by_its_owner_alone(folder, embedder, tmp_path):
    index, path = archive.indexed(folder, embedder, None).index, tmp_path / "archive.index"
    assert archive.read_index(path) is None
    archive.write_index(index, path)
    found = archive.read_index(path)
    assert (found.space, found.entries) == (index.space, index.entries)
    assert torch.equal(found.points_ND, index.points_ND)
    assert path.stat().st_mode & 0o077 == 0
    assert "red" not in repr(found)


def test_only_what_is_new_or_changed_is_embedded_again(folder, embedder):
    known = archive.indexed(folder, embedder, None)
    assert known.embedded == 12
    assert archive.indexed(folder, embedder, known.index).embedded == 0
    (folder / "red.png").write_bytes(png((0, 90, 90)))
    (folder / "more" / "blue.wav").unlink()
    (folder / "black.txt").rename(folder / "night.txt")
    found = archive.indexed(folder, embedder, known.index)
    assert found.embedded == 1
    assert {entry.name for entry in known.index.entries} - {entry.name for entry in found.index.entries} == {
        "more/blue.wav", "black.txt",
    }  # fmt: skip
    fresh = archive.indexed(folder, embedder, None).index
    assert found.index.entries == fresh.entries
    torch.testing.assert_close(found.index.points_ND, fresh.points_ND)


def test_what_cannot_be_searched_is_left_out_and_told(folder, embedder, tmp_path):
    (folder / "notes.pdf").write_text("none")
    (folder / "large.png").write_bytes(png((1, 2, 3), side=64))
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "long.txt").write_text("a " * archive.MOST_TEXT)
    (folder / ".hidden.txt").write_text("hidden")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    found = archive.indexed(folder, embedder, None)
    assert len(found.index.entries) == 12
    assert set(found.left_out) == {"notes.pdf", "large.png", "broken.wav", "long.txt", "pipe.txt"}
    assert found.left_out["large.png"] == "is not 32 pixels high and 32 wide"
    assert found.left_out["broken.wav"] == "is no WAV file"


def test_equal_bytes_under_names_of_two_kinds_are_judged_for_each_kind(folder, embedder):
    for kind, other in (("png", "wav"), ("wav", "png")):
        file = folder / "red.png" if kind == "png" else folder / "more" / "red.wav"
        (folder / f"copied.{other}").write_bytes(file.read_bytes())
    found = archive.indexed(folder, embedder, None)
    assert sorted(found.left_out) == ["copied.png", "copied.wav"]
    assert {"red.png", "more/red.wav"} <= {entry.name for entry in found.index.entries}


def test_an_archive_of_nothing_and_one_of_too_much_are_refused(embedder, tmp_path, monkeypatch):
    with pytest.raises(ArchiveRefused, match="holds no file"):
        archive.indexed(tmp_path, embedder, None)
    monkeypatch.setattr(archive, "MOST_FILES", 1)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    with pytest.raises(ArchiveRefused, match="more than 1 files"):
        archive.indexed(tmp_path, embedder, None)


def test_texts_need_the_backbone_and_pictures_do_not(folder, built, embedder):
    blind = Embedder(built[0], None)
    with pytest.raises(BackboneMismatch):
        archive.indexed(folder, blind, None)
    known = archive.indexed(folder, embedder, None).index
    assert archive.indexed(folder, blind, known).embedded == 0
    with pytest.raises(BackboneMismatch):
        archive.question("red", blind)
    assert archive.question(str(folder / "red.png"), blind).shape == (32,)


def test_an_index_of_another_space_is_refused(folder, embedder):
    known = archive.indexed(folder, embedder, None).index
    other = archive.Index("0" * 64, known.entries, known.points_ND)
    with pytest.raises(ArchiveRefused, match="another space"):
        archive.indexed(folder, embedder, other)
    narrower = archive.Index(known.space, known.entries, known.points_ND[:, :-1])
    with pytest.raises(ArchiveRefused, match="another width"):
        archive.indexed(folder, embedder, narrower)


@pytest.mark.parametrize("text", ["", "  ", "a " * archive.MOST_TEXT, "gone.png", "/dev/zero.wav"])
def test_a_question_that_is_none_is_refused(embedder, text):
    with pytest.raises(ArchiveRefused):
        archive.question(text, embedder)


def test_a_question_that_is_no_picture_says_why(embedder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(ArchiveRefused, match=r"a\.png: is no PNG file"):
        archive.question(str(tmp_path / "a.png"), embedder)


def damaged(index, **changes):
    facts = archive._Facts(space=index.space, entries=index.entries)
    tensors = {"points": index.points_ND} | changes.pop("tensors", {})
    return save(tensors, metadata={"archive": changes.get("facts", facts.model_dump_json())})


DAMAGES = {
    "empty": lambda index: b"",
    "no safetensors": lambda index: b"\x80\x04K\x01.",  # a pickle
    "cut": lambda index: damaged(index)[:-10],
    "no facts": lambda index: save({"points": index.points_ND}),
    "facts of another form": lambda index: damaged(index, facts="[]"),
    "a point too few": lambda index: damaged(index, tensors={"points": index.points_ND[1:].contiguous()}),
    "points of other bits": lambda index: damaged(index, tensors={"points": index.points_ND.double()}),
    "a point that is no number": lambda index: damaged(index, tensors={"points": index.points_ND * float("nan")}),
    "a tensor too many": lambda index: damaged(index, tensors={"more": torch.zeros(1)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused(folder, embedder, tmp_path, damage):
    index, path = archive.indexed(folder, embedder, None).index, tmp_path / "archive.index"
    path.write_bytes(DAMAGES[damage](index))
    with pytest.raises(ArchiveRefused, match=r"archive\.index"):
        archive.read_index(path)


def test_equal_points_come_by_name():
    entries = tuple(archive.Entry(name=f"{name}.txt", kind="text", sha256="0" * 64) for name in "cab")
    index = archive.Index("0" * 64, entries, torch.ones(3, 2))
    assert [each.name for each in archive.nearest(index, torch.ones(2), 2)] == ["a.txt", "b.txt"]
