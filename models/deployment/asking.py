"""Asks a deployed model: requests from a table, from lines of JSON, or from the command line. ask.py runs this.

Nothing is sent anywhere and nothing is kept; answers are lines of JSON on standard output, one a request.
"""

import argparse
import base64
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import InvalidPrompt, ModelError
from ..records.requests import FieldsShown, Request
from ..structure.pictures import MOST_BYTES
from .description import TOKENIZER, Deployment, load
from .reading import Asked, Reader
from .writing import Bytes, Writer

_ROWS = 256  # requests whose heads are computed together
_LONGEST_LINE = 1 << 20  # characters, without a picture
_PICTURES = "pictures"  # folder beside a table that names files
_HOTTEST = 100.0
_TORN = "a row has another number of cells than the table has columns"


class Answering:
    """A deployed model in a folder, with all that it takes to ask it."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Loads the model.

        Args:
            threads: of the processor; None: what the runtime takes.

        Raises:
            InvalidRelease: the description is missing or broken.
        """
        self.deployment: Deployment = load(folder)
        tokenizer: Any = None
        if (folder / TOKENIZER).exists():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.reader = Reader(self.deployment.request, tokenizer)
        self._model = _model(folder, self.deployment, threads)
        self._room = self.deployment.longest - self.reader.picture_tokens
        self.writer = Writer(
            model=self._model,
            tokenizer=tokenizer,
            words=self.deployment.words,
            room=self._room,
            ends=frozenset(self.deployment.ends),
            structure=self.deployment.structure,
            guide=None if self.deployment.request.writing is None else self.deployment.request.writing.guide,
        )

    def answer(
        self,
        requests: Sequence[Asked],
        *,
        longest: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[dict[str, Any]]:
        """Answers requests: `{"answer": {...}}` of a head, `{"text": ..., "is_ended": ...}`, or `{"error": ...}`.

        Args:
            longest: tokens that are written at most; None: as the study says.
            temperature, seed: see `Writer.write`.
        """
        found: list[dict[str, Any]] = [{}] * len(requests)
        shown: dict[int, list[int]] = {}
        pictures: dict[int, Bytes] = {}
        for place, asked in enumerate(requests):
            try:
                ids, picture = self._shown(asked), self.reader.picture(asked)
            except ModelError as err:
                found[place] = {"error": str(err)}
                continue
            shown[place] = ids
            if picture is not None:
                pictures[place] = picture
        writing = self.deployment.request.writing
        if writing is None:
            for place, outputs in self.outputs(shown):
                found[place] = {"answer": self.reader.answers(outputs)}
            return found
        places = [*shown]
        texts = self.writer.write(
            [shown[place] for place in places],
            longest or writing.longest,
            pictures=[pictures[place] for place in places] if pictures else None,
            temperature=temperature,
            seed=seed,
        )
        for place, text in zip(places, texts, strict=True):
            found[place] = text._asdict()
        return found

    def _shown(self, asked: Asked) -> list[int]:
        ids = self.reader.ids(asked)
        if len(ids) >= self._room + (self.deployment.request.writing is None):
            raise InvalidPrompt(
                f"the request has {len(ids):,} tokens, and the model reads {self._room:,} with its answer"
            )
        return ids

    def outputs(self, shown: Mapping[int, list[int]]) -> Iterator[tuple[int, Any]]:
        """Yields the outputs [K] of the head for token ids, each with the place that it was given."""
        order = sorted(shown, key=lambda place: len(shown[place]))  # so that little is padded
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            ids_RT = np.zeros((len(some), max(1, len(shown[some[-1]]))), dtype=np.int64)
            for row, place in enumerate(some):
                ids_RT[row, : len(shown[place])] = shown[place]
            outputs = self._model.outputs(ids_RT, self.writer.places(ids_RT))
            yield from zip(some, outputs.reshape(len(some), -1), strict=True)


def main() -> None:
    """Answers what the command line asks for."""
    use_utf8()
    folder = Path(sys.argv[0]).resolve().parent
    arguments = parser().parse_args()
    try:
        answering = Answering(folder, threads=arguments.threads)
        is_wrong = False
        for asked in requests_of(arguments, answering.deployment.request):
            start = time.perf_counter()
            if isinstance(asked, ModelError):
                answer: dict[str, Any] = {"error": str(asked)}
            else:
                (answer,) = answering.answer(
                    [asked], longest=arguments.longest, temperature=arguments.temperature, seed=arguments.seed
                )
            if arguments.time:
                answer["milliseconds"] = round(1000 * (time.perf_counter() - start), 2)
            is_wrong |= "error" in answer
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    except (ModelError, OSError) as err:
        sys.exit(f"{err}; nothing more was answered")
    sys.exit(1 if is_wrong else 0)


def use_utf8() -> None:
    """Makes standard input and output UTF-8 in any locale, as files of requests are, with or without a mark of it."""
    for stream, encoding in ((sys.stdin, "utf-8-sig"), (sys.stdout, "utf-8")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding)


def _model(folder: Path, deployment: Deployment, threads: int | None) -> Any:
    if deployment.runtime == "torch":
        from .torch_model import TorchModel

        return TorchModel(folder, deployment, threads)
    from .onnx_model import OnnxModel

    return OnnxModel(folder, deployment, threads)


def parser_of_requests() -> argparse.ArgumentParser:
    """Makes the parser of the part of a command line that says what is asked."""
    parser = argparse.ArgumentParser(
        description="Ask the model in this folder. Nothing leaves this machine. Answers are lines of JSON.",
        epilog='examples: python ask.py requests.csv; python ask.py question="..."; python ask.py - < requests.jsonl',
    )
    parser.add_argument(
        "requests",
        nargs="*",
        help="a .csv table with a request a row; a .jsonl file, or - for standard input, with a JSON object a line; or "
        "COLUMN=VALUE for each column of one request; left out, it names the columns. A picture is a PNG file: in a "
        "table its name in the folder pictures beside the table, on the command line its path, in JSON its bytes in "
        "base64",
    )
    parser.add_argument("--by", metavar="COLUMN", help="of a table of histories: whose visit a row is")
    return parser


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the whole command line."""
    parser = parser_of_requests()
    parser.add_argument("--longest", type=_whole(1), help="tokens that are written at most")
    parser.add_argument("--temperature", type=_temperature, default=0.0, help="0 writes the likeliest words (default)")
    parser.add_argument("--seed", type=_whole(0), default=0, help="of what is drawn, with --temperature")
    parser.add_argument("--threads", type=_whole(1), help="of the processor")
    parser.add_argument("--time", action="store_true", help="say how long each answer took")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found = int(text)
        if found < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return found

    return number


def _temperature(text: str) -> float:
    found = float(text)
    if not 0 <= found <= _HOTTEST:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {_HOTTEST}")
    return found


def requests_of(arguments: argparse.Namespace, request: Request) -> Iterator[Any]:
    """Yields the requests that the command line names; an error in the place of one that is none.

    Raises:
        InvalidPrompt: it names none.
    """
    given: list[str] = arguments.requests
    columns = Reader(request).columns
    if not given:
        raise InvalidPrompt(f"a request says {', '.join(columns)}; see --help")
    if len(given) == 1 and given[0] == "-":
        return _told(_lines(sys.stdin, _longest_line(request)))
    is_said = any(each.startswith(f"{name}=") for each in given for name in columns)
    if len(given) == 1 and not is_said and Path(given[0]).suffix in (".csv", ".jsonl"):
        return _told(_of_file(Path(given[0]), arguments.by, request))
    if not all("=" in each for each in given):
        raise InvalidPrompt(f"write COLUMN=VALUE for {', '.join(columns)}, or give one .csv or .jsonl file")
    return iter([_with_picture(dict(each.split("=", 1) for each in given), request, None)])


def _of_file(path: Path, by: str | None, request: Request) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            yield from _lines(file, _longest_line(request))
            return
        for row in _rows(file, by, request):
            yield _with_picture(row, request, path.parent / _PICTURES)


def _with_picture(asked: Any, request: Request, folder: Path | None) -> Any:
    """Puts the bytes of a picture, in base64, where a request names its file; an error in place of one without.

    Args:
        folder: below which files are; None: anywhere, as who runs this has named it.
    """
    if request.picture is None or not isinstance(asked, Mapping) or (column := request.picture.column) not in asked:
        return asked
    path = Path(asked[column]) if folder is None else folder / asked[column].strip()
    try:
        if folder is not None and not path.resolve().is_relative_to(folder.resolve()):
            return InvalidPrompt(f"{column}: a file that is not below the folder {folder.name}")
        if not path.is_file():
            return InvalidPrompt(f"{column}: no such file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, RuntimeError):  # a name with a zero byte; a loop of links
        return InvalidPrompt(f"{column}: the file cannot be read")
    if len(content) > MOST_BYTES:
        return InvalidPrompt(f"{column}: a file of more than {MOST_BYTES >> 20} MiB")
    return {**asked, column: base64.b64encode(content).decode()}


def _longest_line(request: Request) -> int:
    return _LONGEST_LINE + (0 if request.picture is None else 2 * MOST_BYTES)


def _told(requests: Iterator[Any]) -> Iterator[Any]:
    """Says in words what is wrong with a file as a whole."""
    try:
        yield from requests
    except UnicodeError:
        raise InvalidPrompt("the requests are not UTF-8") from None
    except csv.Error as err:
        raise InvalidPrompt(f"the table is no CSV ({err})") from None


def _lines(file: TextIO, longest: int = _LONGEST_LINE) -> Iterator[Any]:
    for line in iter(lambda: file.readline(longest), ""):
        end = line
        while len(end) == longest and not end.endswith("\n"):  # its rest is no request of its own
            end = file.readline(longest)
        if end is not line:
            yield InvalidPrompt(f"a line is longer than {longest:,} characters")
        elif line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield InvalidPrompt("a line is no JSON")


def _rows(file: TextIO, by: str | None, request: Request) -> Iterator[Any]:
    table = csv.DictReader(file)
    with _long_cells():
        names = [name.strip() for name in table.fieldnames or ()]
    table.fieldnames = names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidPrompt(f"the table has several columns {', '.join(twice)}")
    if not (isinstance(request.shown, FieldsShown) and request.shown.order is not None):
        yield from (row if _is_whole(row) else InvalidPrompt(_TORN) for row in _each_of(table))
        return
    if by is None or by not in names:
        raise InvalidPrompt(
            "a record is all visits of a person: say with --by which column of the table names the person"
        )
    visits: dict[str, list[Any]] = {}
    for row in _each_of(table):
        if not _is_whole(row):
            raise InvalidPrompt(_TORN)
        person = row[by].strip()
        if not person:
            raise InvalidPrompt(f"a row has nothing in {by}, so it is nobody's visit")
        visits.setdefault(person, []).append(row)
    yield from visits.values()


def _each_of(table: "csv.DictReader[str]") -> Iterator[Any]:
    while True:
        with _long_cells():
            row = next(table, None)
        if row is None:
            return
        yield row


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lets a cell be as long as a line while a row is read: the limit holds for all tables of the process."""
    before = csv.field_size_limit(_LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_whole(row: Mapping[str | None, Any]) -> bool:
    """True if a row has as many cells as there are columns: a cell that is missing is no missing value."""
    return None not in row and None not in row.values()
