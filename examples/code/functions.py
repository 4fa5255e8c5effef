"""Reads functions from source files: text that stands by itself, without comments and documentation.

A function is dedented and keeps its own line breaks. What does not parse, is no plain ASCII, holds tabs, or is shorter
or longer than a small model can learn from is left out.
"""

import ast
import io
import re
import textwrap
import tokenize
import warnings
from collections.abc import Iterator

import tree_sitter
import tree_sitter_java

LINES = (3, 40)
LONGEST_LINE = 120  # signs
_JAVA = tree_sitter.Language(tree_sitter_java.language())
_WANTED = tree_sitter.Query(_JAVA, "(line_comment) @comment (block_comment) @comment (method_declaration) @method")
_CALLS = tree_sitter.Query(_JAVA, "(method_declaration name: (identifier) @name) (method_invocation) @call")


def of_python(source: str) -> Iterator[str]:
    """Yields the functions of a Python file, methods among them, without those inside of others."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for node in _functions(tree):
        first, *rest = node.body
        documentation = range(0)
        if ast.get_docstring(node, clean=False) is not None:
            if not rest or rest[0].lineno <= (first.end_lineno or 0):  # nothing else, or something in the same line
                continue
            documentation = range(first.lineno, (first.end_lineno or 0) + 1)
        numbers = range(node.lineno, (node.end_lineno or 0) + 1)
        text = textwrap.dedent("\n".join(lines[number - 1] for number in numbers if number not in documentation))
        if "'''" not in text and '"""' not in text and text[:1].strip():
            yield from _fit(_without_comments(text) if "#" in text else text, "\\\n")


def of_java(source: str) -> Iterator[str]:
    """Yields the methods of a Java file, those of inner classes among them, without those inside of others."""
    data = bytearray(source.encode(errors="replace"))
    tree = tree_sitter.Parser(_JAVA).parse(bytes(data))
    found = tree_sitter.QueryCursor(_WANTED).captures(tree.root_node)
    for node in found.get("comment", []):
        data[node.start_byte : node.end_byte] = re.sub(rb"[^\n]", b" ", data[node.start_byte : node.end_byte])
    end = 0
    for node in sorted(found.get("method", []), key=lambda node: node.start_byte):
        if node.start_byte < end:
            continue
        end = node.end_byte
        if node.child_by_field_name("body") and not node.has_error:
            indent = node.start_byte - data.rfind(b"\n", 0, node.start_byte) - 1
            text = data[node.start_byte : node.end_byte].decode(errors="replace")
            if '"""' not in text:
                yield from _fit(re.sub(rf"\n {{1,{max(indent, 1)}}}", "\n", text) if indent else text, "\\u")


def is_recursive(function: str, language: str) -> bool:
    """True if a function calls itself: by its bare name, or by `self`, `cls` or `this`."""
    if language == "python":
        (node,) = ast.parse(function).body
        calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
        names = [each.id for each in calls if isinstance(each, ast.Name)]
        names += [
            each.attr
            for each in calls
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id in ("self", "cls")
        ]
        return node.name in names
    data = function.encode()
    tree = tree_sitter.Parser(_JAVA).parse(data)
    found = tree_sitter.QueryCursor(_CALLS).captures(tree.root_node)
    name = min(found["name"], key=lambda node: node.start_byte).text
    own = [node for node in found.get("call", []) if node.child_by_field_name("name").text == name]
    callers = [node.child_by_field_name("object") for node in own]
    return any(caller is None or caller.text == b"this" for caller in callers)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        else:
            todo += ast.iter_child_nodes(node)


def _without_comments(function: str) -> str:
    lines = function.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(function).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines)


def _fit(text: str, unwanted: str) -> Iterator[str]:
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    text = "\n".join(lines)
    is_plain = text.isascii() and "\t" not in text and unwanted not in text and "\x0c" not in text
    if is_plain and LINES[0] <= len(lines) <= LINES[1] and max(map(len, lines)) <= LONGEST_LINE:
        yield text
