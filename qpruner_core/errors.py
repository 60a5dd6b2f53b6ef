"""Errors that a person can act on.

    QPrunerError                     exit code 2 on the command line, one sentence on a page
    ├── BadInputError                a value, file or text that does not fit
    │   ├── UnknownNameError         a name that no catalogue entry carries
    │   ├── UnsupportedModelError    a model family, file format or shape we cannot compress
    │   └── DataTooShortError        text or items that do not fill one batch
    ├── ModelNotFoundError           a folder, file or hub repository that is not there
    ├── HubUnreachableError          the hub does not answer, or refuses
    ├── IncompatibleShapeError       widths that a precision or an architecture cannot carry
    ├── InfeasibleBudgetError        a memory budget that no plan reaches
    ├── InfeasibleRatioError         a pruning ratio that no selection reaches
    ├── OutputExistsError            a folder or file that would be overwritten
    ├── StorageFullError             the disk does not hold what would be written
    ├── NotReadyError                a step whose input an earlier step has not made yet
    ├── NonFiniteLossError           a loss that is not a number
    ├── DeviceMemoryError            a device whose memory ran out
    ├── MergeRefusedError            an adapter that would change too much as it is merged
    ├── DashboardError               a study that optuna-dashboard cannot show
    └── StoppedError                 work that was asked to stop before it was done

Every message says what was found, what is needed and what to do. Anything else that is raised is a
bug of ours and keeps its traceback.
"""


class QPrunerError(Exception):
    """Base of every error whose message is meant for the person in front of the screen."""


class BadInputError(QPrunerError):
    """A value, file or text that does not fit what is asked for."""


class UnknownNameError(BadInputError):
    """A name that no catalogue entry carries; the message offers the nearest known one."""


class UnsupportedModelError(BadInputError):
    """A model family, file format or tensor shape that cannot be compressed."""


class DataTooShortError(BadInputError):
    """Text or items that do not fill a single batch."""


class ModelNotFoundError(QPrunerError):
    """A folder, file or hub repository that is not there."""


class HubUnreachableError(QPrunerError):
    """The model hub does not answer, or refuses the request."""


class IncompatibleShapeError(QPrunerError):
    """Widths that a precision or an architecture cannot carry."""


class InfeasibleBudgetError(QPrunerError):
    """A memory budget below what the smallest plan needs; the message names the smallest
    possible.
    """


class InfeasibleRatioError(QPrunerError):
    """A pruning ratio that no selection reaches; the message names the largest possible."""


class OutputExistsError(QPrunerError):
    """A folder or file that would be overwritten."""


class StorageFullError(QPrunerError):
    """The disk does not hold what would be written."""


class NotReadyError(QPrunerError):
    """A step whose input has not been made by an earlier step yet."""


class NonFiniteLossError(QPrunerError):
    """A loss that is not a finite number; the message names the step."""


class DeviceMemoryError(QPrunerError):
    """Memory of the device ran out in the middle of the work; the message says what helps."""


class MergeRefusedError(QPrunerError):
    """Merging an adapter changes the logits by more than is allowed; nothing was written."""


class DashboardError(QPrunerError):
    """A study that cannot be shown in optuna-dashboard."""


class StoppedError(QPrunerError):
    """Work that was asked to stop before it was done; nothing half-made is left."""
