"""Errors of `models`.

ModelError
 ├─ InvalidSchema       a record schema contradicts itself
 ├─ UnknownValue        an entry of a record has no word in the schema
 ├─ InvalidBackbone     a backbone directory is broken, or holds what it must not
 ├─ BackboneMismatch    a backbone is not the one that was agreed
 ├─ SourceMissing       what a backbone is to be imported from is not installed
 ├─ InvalidPrompt       a template of prompts is malformed, or leaves no room for a record
 ├─ InvalidPretraining  pretraining settings are out of range
 ├─ ExportRefused       an adapter cannot be written in the PEFT format
 ├─ InvalidRelease      files of an exported adapter are broken, or say something else than an export does
 ├─ CombinationRefused  adapters that do not add up to one
 ├─ MetricUndefined     a metric does not exist for these labels
 ├─ InvalidAdapter      an adapter or head setting is out of its range
 ├─ TargetMissing       the backbone has no module of a name to adapt
 ├─ UnsupportedModule   a target of a kind or layout that the kernels do not compute
 └─ StateMismatch       a state or tensor set does not fit the layout
"""


class ModelError(Exception):
    """Base of every error of `confide.models`."""


class InvalidSchema(ModelError, ValueError):
    """A record schema contradicts itself."""


class UnknownValue(ModelError, ValueError):
    """An entry of a record has no word in the schema; the message never shows the entry."""


class InvalidBackbone(ModelError, ValueError):
    """A backbone directory is broken, or holds what it must not."""


class BackboneMismatch(ModelError):
    """A backbone is not the one that was agreed."""


class SourceMissing(ModelError):
    """The source of an import is not installed, or is another file than the recipe was made for."""


class InvalidPrompt(ModelError, ValueError):
    """A template of prompts is malformed, or leaves no room for a record."""


class InvalidPretraining(ModelError, ValueError):
    """Pretraining settings are out of range."""


class ExportRefused(ModelError, ValueError):
    """An adapter cannot be written in the PEFT format."""


class InvalidRelease(ModelError, ValueError):
    """Files of an exported adapter are broken, or say something else than an export does."""


class CombinationRefused(ModelError, ValueError):
    """Adapters that do not add up to one: of different backbones, or with parts that do not fit."""


class MetricUndefined(ModelError, ValueError):
    """A metric does not exist for these labels."""


class InvalidAdapter(ModelError, ValueError):
    """An adapter or head setting is out of its range."""


class TargetMissing(ModelError):
    """The backbone has no module of that name to adapt."""


class UnsupportedModule(ModelError):
    """The module cannot be adapted: its adapter would compute something else than the backbone does."""


class StateMismatch(ModelError, ValueError):
    """A state has another length, shape or set of names than the layout says, or is not finite."""
