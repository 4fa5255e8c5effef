"""The rule of faces for import-linter: whoever stands outside a room imports what its face names, and nothing else.

A room is a folder inside a package, its face the folder's `__init__`: `__all__` names what others may import, classes
and functions as well as whole modules. That a class or function named there exists is mypy's to say.
"""

import ast
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

ROOT = Path(__file__).parents[1]


def face(room: str) -> frozenset[str]:
    """What the face of a room, `confide.package.room`, names in `__all__`."""
    path = ROOT.joinpath(*room.split(".")[1:], "__init__.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == ["__all__"]:
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def rooms(package: str) -> list[str]:
    """The rooms of a package, by their dotted names."""
    folders = sorted(path.parent for path in ROOT.joinpath(*package.split(".")[1:]).glob("*/__init__.py"))
    return [f"{package}.{folder.name}" for folder in folders]


class Faces(Contract):
    """Reports every import of a module inside a room, from outside it, that the room's face does not name."""

    type_name = "faces"
    packages = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Looks at every import of every room's modules."""
        broken = []
        for room in (room for package in self.packages for room in rooms(package)):
            named = face(room)
            for module in sorted(graph.find_descendants(room)):
                if module.removeprefix(f"{room}.").split(".")[0] in named:
                    continue
                for importer in sorted(graph.find_modules_that_directly_import(module)):
                    if importer != room and not importer.startswith(f"{room}."):
                        for detail in graph.get_import_details(importer=importer, imported=module):
                            broken.append((importer, detail["line_number"], module, room))
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Prints a line an import."""
        for importer, line, module, room in check.metadata["broken"]:
            output.print_error(f"{importer}:{line} imports {module}, which the face of {room} does not name")
        output.new_line()
