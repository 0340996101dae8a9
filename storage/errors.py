"""The errors that storage raises, and those that more than one package of node raises or handles.

An error that only one module of node raises is defined in that module, as a subclass of LatentPacsError. Cancelled is
not part of this tree, because it ends work on purpose and reports no fault.
"""

from __future__ import annotations

import errno
from concurrent.futures import CancelledError

from storage.records import ReasonCode


class LatentPacsError(Exception):
    """Base class of all errors except Cancelled."""


class Cancelled(CancelledError):
    """A job, or a wait for a worker, was cancelled. The image that it was working on is unchanged."""


class DataSetError(LatentPacsError):
    """A data set from a peer is refused. Nothing of it is stored."""


class Unparseable(DataSetError):
    """The bytes are not a DICOM data set, or the data set is truncated outside its pixel data."""


class InflatesTooFar(Unparseable):
    """A deflated data set inflates to more than limits.inflated or limits.ratio allow."""


class MissingUid(DataSetError):
    """A UID that identifies the instance is absent or empty."""


class RepeatedUid(DataSetError):
    """A UID that identifies the instance occurs more than once, with different values (PS3.5 section 7.1)."""


class InvalidUid(DataSetError):
    """A UID violates PS3.5 section 9.1: digits and dots, at most 64 characters."""


class ClassMismatch(DataSetError):
    """The SOP Class UID or SOP Instance UID of the data set differs from the command's Affected UIDs."""


class PixelError(LatentPacsError):
    """The data set parses, but its pixels are short, inconsistent with the header, or cannot be decoded."""


class TooManyPixels(PixelError):
    """A frame has more pixels, by its header or its codestream, than limits.pixels allows."""


class OutOfMemory(PixelError):
    """A worker would need more memory than limits.decoder_memory or limits.encoder_memory allows."""


class OutOfTime(PixelError):
    """A decoder took more processor time than limits.decoder_time allows."""


class PayloadError(LatentPacsError):
    """A base, rendition or packed original is damaged, or has a version that this release does not read."""


class ObjectMissing(LatentPacsError):
    """The store has no object with that digest."""


class ObjectDamaged(LatentPacsError):
    """The SHA-256 of an object's bytes, or of the original that it unpacks to, is not the expected one."""


class KeptVerbatim(LatentPacsError):
    """An original is stored as received. The message says why it is not packed."""


class ProofFailed(KeptVerbatim):
    """The packed form of an original does not unpack to the received bytes."""


class OriginalPurged(LatentPacsError):
    """Retention removed the original; only its reconstruction is left."""


class JournalDamaged(LatentPacsError):
    """The audit trail's journal or the change journal cannot be read: a line is not a record, or not a change."""


class Refused(LatentPacsError):
    """A rule of the archive forbids what a command or a job tried to do. Nothing was changed."""


class IndexRefused(Refused):
    """The index is empty, damaged, older than the change journal or that of another archive. The message says what to
    do."""


class IndexFault(LatentPacsError):
    """The database reports that it is locked, read-only, unreadable or damaged. The message says what to check."""


class IndexLost(LatentPacsError):
    """The file of the index was removed or replaced while it was in use, so the last commit counts as not done."""


class BackupRefused(Refused):
    """A backup cannot be made, verified or restored. The message says why, and what to do."""


class NewerFormat(Refused):
    """A newer version wrote these files or this schema. An older version must not change them."""


class PurgeRefused(Refused):
    """The configuration does not allow retention to remove originals."""


class ChangeRefused(Refused):
    """An amendment, deletion or acceptance from quarantine is not allowed. The message says why."""


class StoreFull(LatentPacsError):
    """The disk, the quota or the database has no room or cannot be written. The last write counts as not done."""


class InstanceTooLarge(LatentPacsError):
    """A data set is larger than node.max_instance. It was discarded while it was received."""


class Duplicate(LatentPacsError):
    """The SOP Instance UID is already stored with other content. The new instance is quarantined."""


class Deleted(LatentPacsError):
    """The SOP Instance UID was deleted here. The new instance is quarantined."""


class ChangedMeanwhile(LatentPacsError):
    """While an image was received, what the index holds under its UID changed, such as by a deletion. The image is not
    stored, and the sender has to send it again."""


class NotReconstructable(LatentPacsError):
    """The image is not eligible, or its reconstruction cannot be sent. Only its original can be served."""

    def __init__(self, message: str, code: ReasonCode = ReasonCode.OTHER) -> None:
        super().__init__(message)
        self.code = code


class NothingToSend(LatentPacsError):
    """A reconstruction or a copy cannot be sent, and neither can the original. The message says why."""


class RenditionMismatch(LatentPacsError):
    """The decoded pixels are not those that were verified. They must not be sent."""


class ModelMissing(LatentPacsError):
    """The upscaler or the weights that made a rendition are not installed."""


class WorkerDied(LatentPacsError):
    """The worker process ended during a request."""


class NoWorker(LatentPacsError, OSError):
    """No worker process can start on this machine. No request is to blame for that."""


class UnknownUid(LatentPacsError):
    """No image that is or was stored here has that SOP Instance UID."""


class UnknownReport(LatentPacsError):
    """No audit or validation wrote the requested report."""


class JobRefused(Refused):
    """The job does not exist, or it is already running."""


class ExtraMissing(LatentPacsError):
    """A feature needs an extra that is not installed; the message gives the pip command."""


class InputInvalid(LatentPacsError):
    """A command was given a file, a folder or a value that it cannot use. The message says why."""


class ConfigError(LatentPacsError):
    """config.yaml is invalid. The message names the key, and the nearest valid one."""


class NodeRunning(ConfigError, Refused):
    """A node runs on the storage root, which only one process may use."""


_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def is_exhausted(error: Exception) -> bool:
    """Whether the machine has no memory, process, thread or file descriptor left."""
    no_thread = str(error) == "can't start new thread"  # a RuntimeError of Python
    return no_thread or isinstance(error, MemoryError | NoWorker) or _number(error) in _EXHAUSTED


def is_no_fault_of_a_file(error: Exception) -> bool:
    """Whether the same file may be read or stored later: the machine is exhausted or full, or the index is locked."""
    return is_exhausted(error) or isinstance(error, StoreFull | IndexFault)


def is_of_the_machine(error: Exception) -> bool:
    """Whether the machine caused an error, not the image: as above, or a failing disk, missing rights or modules."""
    return is_no_fault_of_a_file(error) or isinstance(error, ImportError) or _number(error) in _OF_THE_DISK


def _number(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None
