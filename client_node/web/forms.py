"""Reads what a form of ours sends."""

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request

MOST_FIELDS = 200


class FormInvalid(Exception):
    """A form that is not ours."""


async def read_form(request: Request) -> Mapping[str, str]:
    """Reads a form's fields; the frame has bounded its size.

    Raises:
        FormInvalid: it is of another type, has too many fields or one twice, or is no UTF-8.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormInvalid("a form is sent as application/x-www-form-urlencoded")
    body = await request.body()
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), errors="strict",
            max_num_fields=MOST_FIELDS,
        )  # fmt: skip
    except ValueError as err:
        raise FormInvalid("this is no form") from err
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormInvalid("a field of the form comes twice")
    return found
