import pytest

from confide.mpc.mapped import mapped


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 100], ids=["nothing", "a byte", "some pages"])
def test_contents_are_those_of_the_file(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with mapped(tmp_path / "file") as contents:
        assert (len(contents), contents[:], contents[5:300]) == (len(data), data, data[5:300])


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), mapped(tmp_path / "file"):
        pass
