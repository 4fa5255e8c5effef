"""The frame of our web pages: each is one file that needs nothing else, no link, script or font, and prints well."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def templates(module: str) -> Environment:
    """Templates in the folder `templates` beside a module. They extend `page.html`, and `page.css` is their look.

    All that is filled in is escaped, and what is missing raises.
    """
    folders = dict.fromkeys(name.rpartition(".")[0] for name in (module, __name__))
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=ChoiceLoader([PackageLoader(folder) for folder in folders]),
    )
