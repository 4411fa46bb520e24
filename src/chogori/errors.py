"""The exceptions a user of Chogori can meet. Each message says what was asked, what was found and the likely fix.

ChogoriError
├── ConfigError        a configuration that cannot be (also a ValueError)
├── TokenizerError     a vocabulary file that cannot be read or does not fit
├── CorpusError        no text, or text that is not text
├── ShardError         a token shard that is missing, truncated or altered
├── WeightsError       model weights that do not fit the model
├── CheckpointError    a training checkpoint that cannot be continued
├── StorageError       a full or read-only disk
├── NonFiniteError     a loss, gradient or weight that is NaN or infinite
├── RunError           a run folder that is missing, busy or of another kind
├── DatabaseError      a database that is locked, full, read-only, damaged or gone
├── DeploymentError    a model that does not fit the machines, or an engine that does not start
└── CompleterError     a request that got no answer
    ├── RequestError       it cannot be answered as it stands; the message names the field
    │   ├── MessageError       a message or tool that cannot be read
    │   └── ContextLengthError it does not fit the model's context
    ├── OverloadedError    too many requests are waiting
    ├── PinLimitError      prefixes that are kept on purpose fill their share of the cache
    ├── BackendError       what answers failed, or answered what cannot be understood
    └── BackendTimeoutError  it did not answer in time
"""


class ChogoriError(Exception):
    """Base of every error that Chogori raises on purpose."""


class ConfigError(ChogoriError, ValueError):
    """A configuration that cannot be; the message names the field."""


class TokenizerError(ChogoriError):
    """A vocabulary that cannot be read, trained or used."""


class CorpusError(ChogoriError):
    """A corpus that is missing, empty or not text."""


class ShardError(ChogoriError):
    """A token shard that is missing, truncated or altered since it was written."""


class WeightsError(ChogoriError):
    """Model weights whose names, shapes or types do not fit the model."""


class CheckpointError(ChogoriError):
    """A training checkpoint that cannot be continued from."""


class StorageError(ChogoriError):
    """The disk is full or cannot be written."""


class NonFiniteError(ChogoriError):
    """A loss, gradient or weight became NaN or infinite; the message names the first such tensor."""


class RunError(ChogoriError):
    """A run folder that is missing, in use by another process, or made by another recipe."""


class DatabaseError(ChogoriError):
    """A database of keys and usage that is locked, full, read-only, damaged or gone."""


class DeploymentError(ChogoriError):
    """A model that does not fit the machines it is meant for, or an engine that is not there or does not start."""


class CompleterError(ChogoriError):
    """A request that got no answer."""


class RequestError(CompleterError):
    """A request that cannot be answered as it stands. `field` is the parameter at fault, where one is."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MessageError(RequestError):
    """A message or tool that cannot be read; the message names the field."""


class ContextLengthError(RequestError):
    """A request that does not fit the model's context."""


class OverloadedError(CompleterError):
    """Too many requests are waiting. `retry_after_s` is when to come again."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PinLimitError(CompleterError):
    """A prefix that cannot be kept: those that are kept on purpose already fill their share of the cache."""


class BackendError(CompleterError):
    """What answers failed, or answered what cannot be understood. `status` is its HTTP status, where it has one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BackendTimeoutError(CompleterError):
    """What answers did not do so in time."""
