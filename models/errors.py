"""Errors of `models`.

ModelError
 ├─ InvalidSchema       a record schema contradicts itself
 ├─ UnknownValue        an entry of a record has no word in the schema
 ├─ InvalidBackbone     a backbone directory is broken, or has a file that is not allowed
 ├─ BackboneMismatch    a backbone is not the agreed one
 ├─ SourceMissing       the source of an import is not installed
 ├─ InvalidPrompt       a prompt template is malformed, or leaves no room for a record
 ├─ InvalidPicture      a file is no picture of the kind that is read
 ├─ InvalidSound        a file is no sound of the kind that is read
 ├─ InvalidSpace        a folder holds no space, or public things cannot be read
 ├─ InvalidPretraining  pretraining settings are out of range
 ├─ InvalidCompression  a backbone cannot be made smaller so, or an adapter not be carried over
 ├─ ExportRefused       an adapter cannot be written in the PEFT format
 ├─ DeploymentRefused   a trained model cannot be written so that it runs elsewhere
 ├─ UnsupportedGraph    the ONNX Runtime that is installed cannot load a deployed model
 ├─ InvalidRelease      files of an exported adapter are broken, or differ from what an export writes
 ├─ CombinationRefused  adapters cannot be combined
 ├─ MetricUndefined     a metric is not defined for these labels
 ├─ AnswerRefused       a text is no mathematical answer within the grammar and its bounds
 ├─ InvalidAdapter      an adapter or head setting is out of range
 ├─ TargetMissing       no module of the backbone has a target's name
 ├─ UnsupportedModule   the kernels do not compute a target of this kind or layout
 ├─ StateMismatch       a state or tensor set does not fit the layout
 ├─ Busy                a served model has as many requests as it may
 └─ ServiceRefused      the service would be open to strangers, or cannot listen
"""


class ModelError(Exception):
    """Base of every error of `confide.models`."""


class InvalidSchema(ModelError, ValueError):
    """A record schema that contradicts itself."""


class UnknownValue(ModelError, ValueError):
    """An entry of a record that has no word in the schema; the message never shows the entry."""


class InvalidBackbone(ModelError, ValueError):
    """A backbone directory that is broken, or has a file that is not allowed."""


class BackboneMismatch(ModelError):
    """A backbone that is not the agreed one."""


class SourceMissing(ModelError):
    """A source of an import that is not installed, or is not the file that the recipe was made for."""


class InvalidPrompt(ModelError, ValueError):
    """A prompt template that is malformed, or leaves no room for a record."""


class InvalidFile(ModelError, ValueError):
    """A file that is none of the kind that is read; the message says which rule it breaks, and nothing of the file."""


class InvalidPicture(InvalidFile):
    """A file that is no picture of the kind that is read; the message shows nothing of it."""


class InvalidSound(InvalidFile):
    """A file that is no sound of the kind that is read; the message shows nothing of it."""


class InvalidChart(ModelError, ValueError):
    """A chart that cannot be drawn, or a reader of charts that cannot be built, trained or loaded."""


class ChartRefused(ModelError, ValueError):
    """A chart that a reader will not read; the message says which check it failed, and no figure of it."""


class InvalidSpace(ModelError, ValueError):
    """A folder that holds no space of names, pictures and sounds, or a table of public things that cannot be read."""


class InvalidPretraining(ModelError, ValueError):
    """A pretraining setting out of range."""


class InvalidCompression(ModelError, ValueError):
    """Sizes that a backbone cannot be cut to, or an adapter that cannot be carried over to a cut one."""


class ExportRefused(ModelError, ValueError):
    """An adapter that cannot be written in the PEFT format."""


class DeploymentRefused(ModelError):
    """A trained model that cannot be written so that it runs elsewhere."""


class UnsupportedGraph(ModelError):
    """A graph of a deployed model that the installed ONNX Runtime cannot load."""


class InvalidRelease(ModelError, ValueError):
    """Files of an exported adapter that are broken, or differ from what an export writes."""


class CombinationRefused(ModelError, ValueError):
    """Adapters that cannot be combined: of different backbones, or with parts that do not fit."""


class MetricUndefined(ModelError, ValueError):
    """A metric that is not defined for these labels."""


class AnswerRefused(ModelError, ValueError):
    """A text that is no mathematical answer within the grammar and its bounds; the message never shows the text."""


class InvalidAdapter(ModelError, ValueError):
    """An adapter or head setting out of range."""


class TargetMissing(ModelError):
    """A target name that no module of the backbone has."""


class UnsupportedModule(ModelError):
    """A module that cannot be adapted: its adapter would compute another function than the backbone does."""


class StateMismatch(ModelError, ValueError):
    """A state that is not finite, or whose length, shapes or names differ from the layout."""


class RowsUnknown(ModelError):
    """Per-row gradients of a model that was not called through its `AdaptedModel`, or not in training mode."""


class Busy(ModelError):
    """A served model that has as many requests as it may have, or is ending."""


class ServiceRefused(ModelError):
    """Settings with which a service would be open to strangers, or an address or file that it cannot use."""


class FormRefused(ModelError, ValueError):
    """A form that texts shall have is none, is too large, or cannot be followed."""
