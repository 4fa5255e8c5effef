import pytest

from confide.mpc.links.memory_map import mapped


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 100], ids=["nothing", "a byte", "some pages"])
def test_contents_are_those_of_the_file(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    contents = mapped(tmp_path / "file")
    assert (len(contents), contents[:], contents[5:300]) == (len(data), data, data[5:300])


def test_a_view_outlives_the_file_and_its_name(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    tail = mapped(tmp_path / "file")[5:]
    (tmp_path / "file").unlink()
    assert tail == b"56789"


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        mapped(tmp_path / "file")
