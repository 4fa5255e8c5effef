import csv
import zipfile
from functools import partial

import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, are_split_by, checked, rows

pytestmark = pytest.mark.slow

METHODS = """
class File{number} {{
    int add{word}(int left, int right) {{
        // a comment
        int total = left + right * {number};
        return total;
    }}

    boolean same{word}(Object other) {{
        return other instanceof File{number} && other.hashCode() == {word}.hashCode();
    }}

    void third{word}() {{
        System.out.println("File {number} says what it has to say, and no more");
    }}
}}
"""


@pytest.fixture(scope="module")
def java_home(tmp_path_factory):
    """A JDK of which there is nothing but the sources."""
    home = tmp_path_factory.mktemp("jdk")
    (home / "lib").mkdir()
    with zipfile.ZipFile(home / "lib" / "src.zip", "w") as archive:
        for module in ("java.base", "java.desktop", "java.xml", "java.sql"):
            for number in range(60):
                archive.writestr(
                    f"{module}/some/File{number}.java",
                    METHODS.format(number=f"{number}{module[5]}", word=f"w{number}{module[5]}"),
                )
        archive.writestr("java.base/module-info.java", "module java.base {}")
        archive.writestr("java.base/some/notes.txt", METHODS.format(number=99, word=99))
    return home


@pytest.fixture(scope="module")
def few(example, java_home):
    """The example with smaller public packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_HOME", str(java_home))
        patch.setattr(example, "PUBLIC", ("networkx",))
        patch.setattr(example, "PUBLIC_ROWS", 150)
        yield example


@pytest.fixture(scope="module")
def prepared(few, tmp_path_factory):
    directory = tmp_path_factory.mktemp(few.__name__)
    return directory, few.prepare(directory)


def test_preparing_again_gives_the_same_bytes(few, prepared, tmp_path):
    assert are_prepared_alike(few, prepared, tmp_path)


def test_few_files_give_some_of_the_same_rows(few, prepared, tmp_path):
    _, whole = prepared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "FEW", 40)
        report = few.prepare_few(tmp_path)
    for site, parts in report.items():
        some, every = rows(parts["train"]), rows(whole[site]["train"])
        assert 0 < len(some) < len(every)
        assert some == every[: len(some)]


def test_the_tables_fit_the_study(prepared):
    directory, report = prepared
    draft = load_draft(EXAMPLES / "code" / "study.toml")
    assert set(report) == set(draft.participants.sites)
    for site in report.values():
        found = checked(site["train"], draft)
        assert found.problems == ()
        assert found.rows == len(rows(site["train"])) > 100
    assert checked(directory / "public.csv", draft).problems == ()


def test_only_the_java_of_a_site_s_own_modules_is_read(prepared):
    _, report = prepared
    for site, module in (("core", "java.base"), ("client", "java.desktop"), ("tools", "java.xml")):
        assert {row["file_id"].split("/")[0] for row in rows(report[site]["train"])} == {module}
        assert all("comment" not in row["function"] for row in rows(report[site]["train"]))


def test_files_are_held_out_whole(few, prepared):
    _, report = prepared
    assert are_split_by(few.is_held_out, report, "file_id")
    for site in report.values():
        files = [{row["file_id"] for row in rows(site[part])} for part in ("train", "heldout")]
        assert not files[0] & files[1]
        assert [site["units"], site["heldout_units"]] == [len(each) for each in files]


def test_a_function_stands_in_one_row_of_all_tables(prepared):
    directory, report = prepared
    tables = [*(site[part] for site in report.values() for part in ("train", "heldout")), directory / "public.csv"]
    functions = [row["function"] for table in tables for row in rows(table)]
    assert len(functions) == len(set(functions)) > 400
    files = [row["file_id"] for table in tables[:-1] for row in rows(table)]
    assert max(map(files.count, files)) == 2


def test_public_records_are_public_python(prepared):
    directory, _ = prepared
    with (directory / "public.csv").open(newline="") as file:
        names = {row["file_id"].split("/")[0] for row in csv.DictReader(file)}
    assert names == {"networkx"}


def test_copies_for_other_types_are_one_function(few):
    body = "        checked(value);\n        return value + value + 1;"
    method = f"class A {{{{\n    {{0}} twice({{0}} value) {{{{\n{body}\n    }}}}\n}}}}"
    files = [(f"{name}.java", partial(method.format, name)) for name in ("int", "long", "Thing")]
    assert len(list(few.functions(files, few.of_java, set()))) == 1


def test_a_package_that_is_missing_is_named(few):
    with pytest.raises(FileNotFoundError, match="no_such_package"):
        list(few.python_files(("no_such_package",)))


def test_without_java_s_sources_one_reads_what_to_do(example, tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(example, "JVMS", tmp_path)
    monkeypatch.setattr(example.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="set JAVA_HOME"):
        example.java_sources(tmp_path)
