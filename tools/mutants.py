"""Measures how many small mistakes in the source the tests notice: a fixed sample of mutants, each tried once.

    python tools/mutants.py --out RESULTS.jsonl --table RESULTS.md [--sample SAMPLE.json] [--list] [--only PART]

A mutant is one change inside a function of `ROOMS`: an operator, a constant, a condition, a statement or a value that
is returned. The tests of `TESTS` are collected once. They run once with every statement counted, which tells what each
of them executes, and what it costs. Then a child is forked for each mutant: functions get the code with the mistake in
place of theirs, and those tests run that execute the changed statement, the quick ones first, until one fails.

Left out are tests marked `process`, whose processes would not see the mutant, all of tests/system, and whatever runs
at import only: constants of modules, defaults and decorators are not changed. A test that kills must pass alone
without the mutant; one that doesn't is used no more. Equal seeds and sources give equal samples.
"""

import argparse
import ast
import builtins
import copy
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import string
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import setitem
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NoReturn, TextIO

os.environ["OMP_NUM_THREADS"] = "1"  # a child gets none of its parent's threads
sys.dont_write_bytecode = True

import pytest  # noqa: E402

ROOMS = ("privacy", "mpc", "client_node/approval", "client_node/shares", "coordinator/run")
TESTS = (
    *ROOMS, "client_node/policy", "client_node/cli/test_deciding.py", "client_node/page/test_studies.py",
    "client_node/test_backup.py", "client_node/test_decision_teller.py", "client_node/test_explanation.py",
    "client_node/test_ledger_head.py", "client_node/test_node.py", "coordinator/page/test_runs.py",
)  # fmt: skip
SEED, COUNT, LEAST = "mutants", 400, 60  # the fewest of a room
MEMORY = Path("/dev/shm")  # noqa: S108
BUDGET_S = 25.0  # of tests for one mutant, as long as they took unchanged
SKIPPED = {"annotation", "returns", "decorator_list", "defaults", "kw_defaults", "format_spec", "type_params"}
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COUNTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}  # fmt: skip
PLACES = ("folder", "home", "path", "directory", "root")  # `/` joins them
UNCOUNTED = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict, ast.Set)  # `+` joins them; `-` never runs

Put = Callable[[ast.AST], None]
Define = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """One change; `text` is its line, `statement` the line where its statement begins."""

    file: str
    function: str
    operator: str
    ordinal: int  # of this operator in this function
    line: int
    text: str
    change: str
    twin: int  # of mutants that are equal in all of `key` else
    statement: int = field(compare=False)
    apply: Callable[[], None] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """What it is called in results."""
        return f"{self.file}::{self.function}::{self.operator}::{self.ordinal}"

    @property
    def room(self) -> str:
        """The first of `ROOMS` that holds its file."""
        return next(room for room in ROOMS if self.file.startswith(f"{room}/"))

    @property
    def key(self) -> tuple[object, ...]:
        """What stays when lines around it change."""
        return (self.file, self.function, self.operator, self.text, self.change, self.twin)

    def told(self) -> dict[str, Any]:
        """Everything but its code."""
        names = ("name", "room", "file", "function", "operator", "line", "text", "change", "twin")
        return {name: getattr(self, name) for name in names}


class Finder:
    """Finds every mutant of a source in `found`; `apply` of one changes `tree`."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.tree, self.lines = file, ast.parse(source), source.splitlines()
        self.found: list[Mutant] = []
        self._function, self._returns, self._statement = "", False, 0
        self._ordinals: Counter[tuple[str, str]] = Counter()
        self._twins: Counter[tuple[str, ...]] = Counter()
        self._walk(self.tree, "")

    def _walk(self, node: ast.AST, scope: str) -> None:
        for name, value in ast.iter_fields(node):
            if name in SKIPPED:
                continue
            if isinstance(value, ast.AST):
                self._see(value, partial(setattr, node, name), scope)
            for at, child in enumerate(value if isinstance(value, list) else ()):
                if isinstance(child, ast.AST):
                    self._see(child, partial(setitem, value, at), scope)

    def _see(self, node: ast.AST, put: Put, scope: str) -> None:
        kept = self._function, self._returns, self._statement
        if isinstance(node, ast.stmt):
            self._statement = node.lineno
        if isinstance(node, ast.ClassDef):
            self._walk(node, f"{scope}{node.name}.")
        elif isinstance(node, Define):
            self._function, self._returns = f"{scope}{node.name}", returns_value(node)
            self._walk(node, f"{scope}{node.name}.")
        elif not self._function:
            self._walk(node, scope)
        elif not (isinstance(node, ast.Assert) or logs(node)):
            self._offers(node, put)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                self._see(node.args[0], partial(setitem, node.args, 0), scope)
            elif not isinstance(node, ast.Raise):  # its message
                self._walk(node, scope)
        self._function, self._returns, self._statement = kept

    def _offers(self, node: ast.AST, put: Put) -> None:
        """Offers all changes of one node."""
        if isinstance(node, ast.Compare):
            for at, op in enumerate(node.ops):
                ops = [*node.ops[:at], COMPARED[type(op)](), *node.ops[at + 1 :]]
                self._offer("compare", node, changed(node, ops=ops), put)
        elif isinstance(node, ast.BinOp | ast.AugAssign) and counts(node):
            self._offer("arithmetic", node, changed(node, op=COUNTED[type(node.op)]()), put)
        elif isinstance(node, ast.BoolOp):
            self._offer("boolean", node, changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And()), put)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            self._offer("boolean" if isinstance(node.op, ast.Not) else "arithmetic", node, node.operand, put)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            self._offer("constant", node, ast.Constant(value), put)
        elif isinstance(node, ast.Raise) or is_call(node):
            # A change keeps what it replaces where that never runs: a closure keeps its variables.
            self._offer("delete", node, ast.If(ast.Constant(False), [node], []), put, "pass")
        elif isinstance(node, ast.Return) and self._returns and not is_none(node.value):
            value = ast.IfExp(ast.Constant(True), ast.Constant(None), node.value)
            self._offer("return", node, ast.Return(value), put, "return None")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            other = ast.Name("max" if node.func.id == "min" else "min", ast.Load())
            self._offer("extreme", node, changed(node, func=other), put)
        if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Constant):
            self._forced(node.test, partial(setattr, node, "test"), only_false=isinstance(node, ast.While))
        for at, test in enumerate(node.ifs if isinstance(node, ast.comprehension) else ()):
            self._forced(test, partial(setitem, node.ifs, at))

    def _forced(self, test: ast.expr, put: Put, only_false: bool = False) -> None:
        self._offer("condition", test, ast.BoolOp(ast.And(), [ast.Constant(False), test]), put, "False")
        if not only_false:
            self._offer("condition", test, ast.BoolOp(ast.Or(), [ast.Constant(True), test]), put, "True")

    def _offer(self, operator: str, old: Any, new: ast.AST, put: Put, shown: str = "") -> None:
        text = self.lines[old.lineno - 1].strip()
        change = " → ".join(" ".join(each.split())[:110] for each in (ast.unparse(old), shown or ast.unparse(new)))
        twins = (self._function, operator, text, change)
        mutant = Mutant(
            self.file, self._function, operator, self._ordinals[self._function, operator], old.lineno, text, change,
            self._twins[twins], self._statement, partial(put, ast.copy_location(new, old)),
        )  # fmt: skip
        self._ordinals[self._function, operator] += 1
        self._twins[twins] += 1
        self.found.append(mutant)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """The same node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def counts(node: ast.BinOp | ast.AugAssign) -> bool:
    """Whether this is arithmetic, not a text or list put together."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    texts = [isinstance(one, ast.Constant) and isinstance(one.value, str | bytes) for one in sides]
    joins = isinstance(node.op, ast.Div) and any(word in ast.unparse(sides[0]) for word in PLACES)
    return (
        type(node.op) in COUNTED
        and not joins
        and not any(texts)
        and not any(isinstance(one, UNCOUNTED) for one in sides)
    )


def is_none(node: ast.AST | None) -> bool:
    """Whether nothing stands here, or None."""
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def is_call(node: ast.AST) -> bool:
    """Whether this is a statement that only calls something."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value.value if isinstance(value, ast.Await) else value, ast.Call)


def logs(node: ast.AST) -> bool:
    """Whether this is a call of a logger."""
    func = node.func if isinstance(node, ast.Call) else node.value.func if is_call(node) else None  # type: ignore[attr-defined]
    return isinstance(func, ast.Attribute) and ast.unparse(func.value) in ("logger", "logging")


def returns_value(node: Define) -> bool:
    """Whether the function says that it returns a value, and yields none."""
    yields = any(isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(node))
    return node.returns is not None and not is_none(node.returns) and not yields


def sources(root: Path) -> dict[str, str]:
    """Texts of all files of the rooms."""
    paths = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    return {str(path.relative_to(root)): path.read_text() for path in paths}


def drawn(mutants: list[Mutant], count: int, seed: str) -> list[Mutant]:
    """Draws a sample: each room in proportion to its mutants, but `LEAST` of each."""
    rooms = {room: [each for each in mutants if each.room == room] for room in ROOMS}
    shares, left, open_rooms = {}, count, sorted(ROOMS, key=lambda room: len(rooms[room]))
    for at, room in enumerate(open_rooms):
        fair = left * len(rooms[room]) / (sum(len(rooms[each]) for each in open_rooms[at:]) or 1)
        shares[room] = min(max(round(fair), min(LEAST, count // len(ROOMS))), len(rooms[room]))
        left -= shares[room]
    return [one for room in ROOMS for one in random.Random(f"{seed}:{room}").sample(rooms[room], shares[room])]  # noqa: S311


def noted(file: str, source: str, lines: set[int]) -> ast.Module:
    """The source with a note before each statement of a function that begins on one of `lines`."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, Define)]
    for node in {id(inner): inner for function in functions for inner in ast.walk(function)}.values():
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            for each in [*block] if isinstance(block, list) else ():
                if each.lineno in lines:
                    note = ast.parse(f"__reached__.add('{file}:{each.lineno}')").body[0]
                    block.insert(block.index(each), ast.copy_location(note, each))
    return tree


def codes(code: CodeType) -> Iterator[CodeType]:
    """All codes in a module's."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from codes(each)


class Functions:
    """All functions of a package that exist, so that they can be given other code."""

    def __init__(self, root: Path) -> None:
        self._base = str(root / "src" / "confide")
        self._found: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        gc.unfreeze()  # frozen ones are not told
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename.startswith(self._base):
                code = each.__code__
                self._found[code.co_filename, code.co_qualname, code.co_firstlineno].append(each)
        gc.freeze()

    def replace(self, file: str, tree: ast.Module) -> None:
        """Gives the functions of a file the code of `tree`. Raises LookupError if none gets another."""
        path, number = f"{self._base}/{file}", 0
        for code in codes(compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)):
            for function in self._found.get((path, code.co_qualname, code.co_firstlineno), ()):
                if function.__code__ != code:
                    function.__code__, number = code, number + 1
        if not number:
            raise LookupError(f"{file} has no function with this change")


@dataclass
class Task:
    """What a child shall do, and how long it may."""

    call: Callable[[], dict[str, Any]]
    cpu_s: float = 3600.0
    wall_s: float = 7200.0
    mutant: Mutant | None = None
    test: str = ""  # which is tried alone, without a mutant


class Suite:
    """A plugin of pytest that runs the collected tests in children instead of one after the other."""

    def __init__(self, options: argparse.Namespace, texts: dict[str, str], sample: list[Mutant], say: TextIO) -> None:
        self.options, self.texts, self.sample, self.say = options, texts, sample, say
        self.results: list[dict[str, Any]] = []
        self.tests: dict[str, dict[str, Any]] = {}
        self.setups: dict[str, dict[str, Any]] = {}
        self._now: dict[str, str] = {}  # the set-up of each fixture that lives longer than a test
        self._spent = 0.0  # on them, of this test
        self._failures: list[str] = []
        self._reached: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        """Adds the settings of tests/conftest.py, but that no smallest example is looked for."""
        from hypothesis import HealthCheck, Phase, settings

        settings.register_profile(
            "mutants", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Stops where a file cannot be collected."""
        if report.failed:
            stop(f"{report.nodeid} cannot be collected:\n{report.longrepr}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a failure."""
        if report.failed:
            self._failures.append(f"{report.nodeid}\n{report.longreprtext[-1000:]}")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[Any]:
        """Notes what a fixture costs and reaches that lives longer than a test."""
        if fixturedef.scope == "function":
            return (yield)
        before, began = set(self._reached), spent()
        self._reached.clear()
        try:
            return (yield)
        finally:
            key = f"{fixturedef.baseid}::{fixturedef.argname}[{request.param_index}]"
            self.setups[key] = {"cost": spent() - began, "reached": sorted(self._reached)}
            self._now[f"{fixturedef.baseid}::{fixturedef.argname}"] = key
            self._spent += self.setups[key]["cost"]
            self._reached |= before

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Measures the tests, then tries the mutants."""
        self._config = session.config
        self._items = {item.nodeid: item for item in session.items}
        for file in self.texts:
            importlib.import_module("confide." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        if (found := Path(sys.modules["confide"].__file__ or "").parents[1]) != self.options.root / "src":
            stop(f"confide was imported from {found}, not from {self.options.root}")
        if threading.active_count() > 1:  # pyarrow's own one is native, and idle
            print("a thread runs in the parent: children may hang", file=self.say)
        self._functions = Functions(self.options.root)
        self._measure()
        self._try()
        return True

    def _run(self, names: Iterable[str], until_failure: bool = True) -> Iterator[str]:
        """Runs tests one after the other; yields the name of each that has run."""
        items = [self._items[name] for name in names]
        for item, after in itertools.zip_longest(items, items[1:]):
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            except BaseException as err:  # a mutant may raise what ends pytest
                self._failures.append(f"{item.nodeid}\n{err!r}")
            yield item.nodeid
            if self._failures and until_failure:
                return

    def _measured(self, names: list[str], lines: dict[str, set[int]]) -> dict[str, Any]:
        """What tests cost and reach, as a child finds it."""
        builtins.__reached__ = self._reached  # type: ignore[attr-defined]
        for file, wanted in lines.items():
            self._functions.replace(file, noted(file, self.texts[file], wanted))
        began = spent()
        for name in self._run(names, until_failure=False):
            item: Any = self._items[name]
            known = [defs[-1] for defs in item._fixtureinfo.name2fixturedefs.values()]
            keys = [self._now.get(f"{each.baseid}::{each.argname}") for each in known if each.scope != "function"]
            cost = max(spent() - began - self._spent, 0.0)
            self.tests[name] = {"cost": cost, "reached": sorted(self._reached), "setups": [key for key in keys if key]}
            self._reached.clear()
            self._spent, began = 0.0, spent()
        return {"tests": self.tests, "setups": self.setups, "failed": self._failures}

    def _measure(self) -> None:
        """Fills `tests` and `setups`, from `--reach` if that tells of these sources, tests and mutants."""
        lines: dict[str, set[int]] = defaultdict(set)
        for mutant in self.sample:
            lines[mutant.file].add(mutant.statement)
        tests = [path.read_bytes() for path in sorted((self.options.root / "tests").rglob("*.py"))]
        about = (
            sorted(self.texts.items()),
            sorted((file, sorted(some)) for file, some in lines.items()),
            [*self._items],
        )
        digest = hashlib.sha256(repr(about).encode() + b"".join(tests)).hexdigest()
        kept = self.options.reach
        found = json.loads(kept.read_text()) if kept and kept.exists() else {}
        if found.get("digest") != digest:
            files = [*dict.fromkeys(name.partition("::")[0] for name in self._items)]
            groups = [set(files[at :: self.options.jobs]) for at in range(self.options.jobs)]
            parts = [[name for name in self._items if name.partition("::")[0] in group] for group in groups]
            print(f"{len(self._items)} tests run once, unchanged", file=self.say)
            found = {"digest": digest, "tests": {}, "setups": {}, "failed": []}
            for _, result in self._children([Task(partial(self._measured, part, lines)) for part in parts if part]):
                if "tests" not in result:
                    stop(f"the unchanged tests came to no end: {result}")
                found = {"digest": digest} | {
                    name: found[name] + result[name] if name == "failed" else found[name] | result[name]
                    for name in result
                }
            if found["failed"]:
                stop(
                    "these fail unchanged; mend them or leave them out by --deselect:\n\n"
                    + "\n\n".join(found["failed"])
                )
            if kept:
                kept.write_text(json.dumps(found))
        self.tests, self.setups = found["tests"], found["setups"]

    def _chosen(self, mutant: Mutant, unsound: set[str]) -> tuple[list[str], float]:
        """Tests that reach a mutant, the quick ones first, and what they cost together."""
        statement, costs = f"{mutant.file}:{mutant.statement}", {}
        for name, test in self.tests.items():
            setups = [self.setups[key] for key in test["setups"]]
            if name not in unsound and any(statement in each["reached"] for each in (test, *setups)):
                costs[name] = test["cost"] + sum(each["cost"] for each in setups)
        chosen: list[str] = []
        paid: set[str] = set()
        total = 0.0
        for name in sorted(costs, key=lambda name: (costs[name], name)):
            new = set(self.tests[name]["setups"]) - paid
            cost = self.tests[name]["cost"] + sum(self.setups[key]["cost"] for key in new)
            if chosen and total + cost > BUDGET_S:
                break
            chosen.append(name)
            paid, total = paid | new, total + cost
        places = {name: at for at, name in enumerate(self._items)}
        # Those of a file together, as they share what it sets up, but what takes long after all that doesn't.
        return sorted(chosen, key=lambda name: ((costs[name] > 0.1) + (costs[name] > 1), places[name])), total

    def _killed(self, names: list[str], mutant: Mutant | None) -> dict[str, Any]:
        """Which test fails with a mutant, as a child finds it."""
        if mutant and not self.options.unchanged:
            finder = Finder(mutant.file, self.texts[mutant.file])
            next(each for each in finder.found if each.name == mutant.name).apply()
            self._functions.replace(mutant.file, finder.tree)
        ran = [*self._run(names)]
        return {"failed": self._failures[:1], "ran": len(ran), "by": ran[-1]}

    def _try(self) -> None:
        """Tries all mutants that have no result yet."""
        out = self.options.out
        done = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
        wanted = [mutant for mutant in self.sample if self.options.only in mutant.name]
        names = {mutant.name for mutant in wanted}
        self.results = [each for each in done if each["name"] in names]
        unsound: set[str] = set()
        sound: set[str] = set()
        waiting: dict[str, list[tuple[Mutant, dict[str, Any]]]] = defaultdict(list)
        had = {each["name"] for each in self.results}
        tasks = [mutant for mutant in wanted if mutant.name not in had]
        began, first, queue = time.monotonic(), len(had), []

        def note(mutant: Mutant, outcome: str, **more: Any) -> None:
            self.results.append(mutant.told() | {"outcome": outcome} | more)
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(self.results[-1]) + "\n")
            new = len(self.results) - first
            left = (time.monotonic() - began) / new * (len(wanted) - len(self.results)) / 60
            print(f"{len(self.results)}/{len(wanted)} {left:.0f} min left {outcome} {mutant.name}", file=self.say)

        def plan(mutant: Mutant) -> None:
            chosen, cost = self._chosen(mutant, unsound)
            if chosen:
                limits = 20 + 3 * cost, 60 + 4 * cost
                queue.append(Task(partial(self._killed, chosen, mutant), *limits, mutant=mutant))
            else:
                note(mutant, "not reached")

        for mutant in tasks:
            plan(mutant)
        for task, result in self._children(queue):
            if task.test and result.get("failed"):
                print(f"{task.test} fails alone, unchanged: it is used no more", file=self.say)
                unsound.add(task.test)
                for mutant, _ in waiting.pop(task.test):
                    plan(mutant)
            elif task.test:
                sound.add(task.test)
                for mutant, told in waiting.pop(task.test):
                    note(mutant, "killed", **told)
            elif "ran" not in result:
                note(task.mutant, "time" if result["late"] else "killed", by=f"status {result['status']}")
            elif not result["failed"]:
                note(task.mutant, "survived", **result)
            elif result["by"] in sound:
                note(task.mutant, "killed", **result)
            else:
                waiting[result["by"]].append((task.mutant, result))
                if len(waiting[result["by"]]) == 1:
                    queue.insert(0, Task(partial(self._killed, [result["by"]], None), 200, 600, test=result["by"]))

    def _children(self, queue: list[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Runs tasks, some at a time, and yields each result; `queue` may grow meanwhile."""
        running: dict[int, tuple[Task, int, Path, float]] = {}
        while queue or running:
            while queue and len(running) < self.options.jobs:
                task = queue.pop(0)
                pid, folder = self._fork(task)
                running[os.pidfd_open(pid)] = (task, pid, folder, time.monotonic() + task.wall_s)
            soonest = min(deadline for *_, deadline in running.values())
            ended, _, _ = select.select([*running], [], [], max(0.0, soonest - time.monotonic()))
            for handle in ended or [min(running, key=lambda handle: running[handle][3])]:
                task, pid, folder, _ = running.pop(handle)
                os.close(handle)
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                told = folder / "result.json"
                late = not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
                result = json.loads(told.read_text()) if told.exists() else {"late": late, "status": status}
                shutil.rmtree(folder, ignore_errors=True)
                if "error" in result:
                    stop(result["error"])
                yield task, result

    def _fork(self, task: Task) -> tuple[int, Path]:
        """Starts a child; it leaves its result in a folder of its own."""
        folder = new_folder()
        if pid := os.fork():
            return pid, folder
        try:
            os.setpgid(0, 0)
            sys.modules["confide.machine"].die_with_parent()
            for number in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            resource.setrlimit(resource.RLIMIT_CPU, (int(task.cpu_s), int(task.cpu_s) + 5))
            resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
            tempfile.tempdir = str(folder)
            self._config._tmp_path_factory._given_basetemp = folder / "base"  # type: ignore[attr-defined]
            for plugin in self._config.pluginmanager.get_plugins():
                if hasattr(plugin, "_MEMORY"):  # tests/conftest.py, whose folders would outlive a child that is killed
                    plugin._MEMORY = folder
            try:
                result = task.call()
            except BaseException:
                result = {"error": traceback.format_exc()}
            part = folder / "part.json"
            part.write_text(json.dumps(result))
            part.rename(folder / "result.json")
        finally:
            os._exit(0)


def spent() -> float:
    """Seconds so far: of processor, and half of those that it waited."""
    return (time.process_time() + time.monotonic()) / 2


def new_folder() -> Path:
    """Makes a folder in memory, whose name has no digits: tests look for some that must not be in a path."""
    place = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
    for size in itertools.count(1):
        for letters in itertools.product(string.ascii_uppercase, repeat=size):
            with suppress(FileExistsError):
                (folder := place / f"confide-mutants-{''.join(letters)}").mkdir(mode=0o700)
                return folder
    raise AssertionError("there is always another name")


def stop(why: str) -> NoReturn:
    """Ends with a message."""
    print(why, file=sys.__stderr__)
    os._exit(2)  # pytest would go on


def table(results: list[dict[str, Any]], gone: list[dict[str, Any]]) -> str:
    """The rate of each room, and what nobody noticed, in Markdown."""
    lines = [
        "| room | mutants | killed | by time | survivors | not reached | kill rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for room in (*ROOMS, "all"):
        some = Counter(each["outcome"] for each in results if room in ("all", each["room"]))
        numbers = [some["killed"] + some["time"], some["time"], some["survived"], some["not reached"]]
        rate = f"{numbers[0] / some.total():.1%}" if some else ""
        lines.append(f"| {' | '.join(map(str, [room, some.total(), *numbers, rate]))} |")
    for title, outcome in (("Survivors", "survived"), ("Not reached", "not reached")):
        those = sorted(
            (each["file"], each["line"], each["name"], each["change"]) for each in results if each["outcome"] == outcome
        )
        lines += [
            "",
            f"{title}:",
            "",
            *(f"- {file}:{line} `{name.split('::', 1)[1]}`: `{change}`" for file, line, name, change in those),
        ]
    if gone:
        lines += ["", "Gone since the sample was drawn:", "", *(f"- {each['name']}: `{each['text']}`" for each in gone)]
    return "\n".join(lines) + "\n"


def sampled(mutants: list[Mutant], options: argparse.Namespace) -> tuple[list[Mutant], list[dict[str, Any]]]:
    """The sample, and what a kept one names that is gone from the sources."""
    kept = options.sample
    if not (kept and kept.exists()):
        sample = drawn(mutants, options.count, options.seed)
        if kept:
            kept.write_text(json.dumps([each.told() for each in sample], indent=1, ensure_ascii=False))
        return sample, []
    wanted = json.loads(kept.read_text())
    now = {each.key: each for each in mutants}
    keys = [tuple(each[name] for name in ("file", "function", "operator", "text", "change", "twin")) for each in wanted]
    return [now[key] for key in keys if key in now], [
        one for one, key in zip(wanted, keys, strict=True) if key not in now
    ]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=lambda text: Path(text).resolve(), default=here, help="another checkout")
    parser.add_argument("--seed", default=SEED, help="draws the sample; equal seeds and sources give the same")
    parser.add_argument("--count", type=int, default=COUNT, help=f"mutants, {COUNT} if not given")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time, 2 if not given")
    parser.add_argument("--out", type=Path, help="results, a line each; those that are there are not tried again")
    parser.add_argument("--table", type=Path, help="the table in Markdown, on the screen otherwise")
    parser.add_argument("--sample", type=Path, help="keeps the sample, or takes it from there if it is")
    parser.add_argument("--reach", type=Path, help="keeps what tests reach, for another run of the same sources")
    parser.add_argument("--only", default="", help="mutants whose name holds this")
    parser.add_argument("--list", action="store_true", help="shows the sample and runs nothing")
    parser.add_argument("--deselect", action="append", default=[], help="tests that are left out")
    parser.add_argument("--unchanged", action="store_true", help="changes nothing: every mutant must survive")
    return parser.parse_args()


def main() -> None:
    """Draws the sample, tries it and tells."""
    options = arguments()
    for name in ("out", "table", "sample", "reach"):
        setattr(options, name, getattr(options, name) and getattr(options, name).resolve())
    texts = sources(options.root)
    sample, gone = sampled([one for file, text in texts.items() for one in Finder(file, text).found], options)
    if options.list:
        print(
            "\n".join(f"{each.name} (line {each.line}): {each.change}" for each in sample if options.only in each.name)
        )
        return
    os.chdir(options.root)
    sys.path.insert(0, str(options.root / "src"))
    suite = Suite(options, texts, sample, os.fdopen(os.dup(2), "w", buffering=1))
    scratch = new_folder()
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(scratch)
    left_out = [f"--deselect={name}" for name in options.deselect]
    command = ["-q", "-p", "no:cacheprovider", "--capture=sys", "-m", "not process", "--hypothesis-profile=mutants"]
    with redirect_stdout(io.StringIO()) as said:
        code = pytest.main(
            [*command, f"--rootdir={options.root}", *left_out, *(f"tests/{each}" for each in TESTS)], [suite]
        )
    shutil.rmtree(scratch, ignore_errors=True)
    if code != pytest.ExitCode.OK:
        stop(f"{said.getvalue()[-3000:]}\npytest ended with {code}")
    told = table(suite.results, gone)
    if options.table:
        options.table.write_text(told)
    else:
        print(told)


if __name__ == "__main__":
    main()
