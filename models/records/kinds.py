"""The table of kinds of record: everything that a study's records may be made of."""

from .chat import Conversations
from .code import Code
from .documents import Documents
from .fields import Fields
from .formulas import Formulas
from .histories import Histories
from .kind import RecordKind
from .pictures import Pictures
from .sounds import Sounds
from .text import FreeText

INLINE = "fields"  # the kind whose keys stand in [data] itself; every other has a table [data.NAME]
KINDS: dict[str, RecordKind] = {
    kind.name: kind
    for kind in (
        Fields(),
        Histories(),
        Documents(),
        FreeText(),
        Conversations(),
        Formulas(),
        Code(),
        Pictures(),
        Sounds(),
    )
}
