"""Every error the archive raises on purpose.

LatentPacsError
├── DataSetError            a peer's data set cannot be accepted
│   ├── Unparseable         not DICOM, or truncated before its pixels
│   ├── MissingUid          no SOP Class, SOP Instance, Study or Series Instance UID
│   ├── ClassMismatch       the data set is not what the command announced
│   └── InvalidUid          a UID that PS3.5 section 9.1 does not allow
├── PixelError              parses, but the pixels cannot be turned into integers
├── PayloadError            a base or rendition that is damaged or of an unknown version
├── ObjectMissing           the object store does not hold that digest
├── ObjectDamaged           the bytes under a digest do not have that digest
├── InstanceTooLarge        larger than node.max_instance: nothing of it stays here
├── KeptVerbatim            an original that has no smaller form from which its very bytes come back
│   └── ProofFailed         it had one, and that gave other bytes
├── OriginalPurged          retention removed the original; only its reconstruction is left
├── JournalDamaged          the audit trail's journal, or that of changes, cannot be read
├── IndexRefused            an index that is empty, foreign, older than the journal or damaged, and may not be used
├── IndexFault              the index cannot be read or written: locked, read-only, unreadable, damaged
├── IndexLost               the file of the index was removed or replaced while it was in use
├── BackupRefused           a backup that cannot be made, read or restored
├── NewerFormat             files or a schema of a newer version than this one
├── PurgeRefused            retention may not remove originals here
├── CorrectionRefused       an amendment, a deletion or a quarantined object that the rules do not allow to go on
├── StoreFull               disk, quota or database full: nothing was stored
├── Duplicate               same SOP Instance UID, other content: the first one is kept
├── Deleted                 the SOP Instance UID was deleted here: the newcomer is quarantined
├── NotReconstructable      an image that may only be returned bit-exact
├── RenditionMismatch       the reconstruction is not the one that was verified
├── ModelMissing            weights that a rendition needs are not installed
├── UnknownUid              no image, original or reconstruction, has that UID
├── UnknownReport           no report of that number, or none at all
├── JobRefused              a job that does not exist, or that is running already
├── WorkerDied              the worker process ended while it worked on a request
└── ConfigError             config.yaml: what is wrong, and where
"""

from __future__ import annotations

from storage.records import ReasonCode


class LatentPacsError(Exception):
    """Root of the tree above."""


class DataSetError(LatentPacsError):
    """A data set from a peer that is refused; nothing of it stays here."""


class Unparseable(DataSetError):
    """Not a DICOM data set, or truncated outside its pixel data."""


class InflatesTooFar(Unparseable):
    """A deflated data set that becomes larger than this archive takes."""


class MissingUid(DataSetError):
    """A UID that identifies the instance is absent or empty."""


class InvalidUid(DataSetError):
    """A UID outside PS3.5 section 9.1: digits and dots, at most 64 characters."""


class ClassMismatch(DataSetError):
    """SOP Class or Instance UID of the data set differ from the command's Affected UIDs."""


class PixelError(LatentPacsError):
    """The data set parses, but its pixels are short, odd or undecodable."""


class TooManyPixels(PixelError):
    """A frame, by its header or its codestream, that has more pixels than are decoded here."""


class OutOfMemory(PixelError):
    """A worker would have needed more memory than it may take."""


class PayloadError(LatentPacsError):
    """A base or rendition whose bytes are damaged, or of a version this release does not read."""


class ObjectMissing(LatentPacsError):
    """No object of that digest in the store."""


class ObjectDamaged(LatentPacsError):
    """An object whose bytes do not hash to its name."""


class KeptVerbatim(LatentPacsError):
    """An original stays as it was received; the message says why."""


class ProofFailed(KeptVerbatim):
    """The packed form of an original does not give back the bytes that were received."""


class OriginalPurged(LatentPacsError):
    """The original was removed by retention; it is not held any more."""


class JournalDamaged(LatentPacsError):
    """A line of the journal is no record of the audit trail, or no change of the index."""


class IndexRefused(LatentPacsError):
    """The index is not that of the objects beside it, or is damaged; the message says what to do."""


class IndexFault(LatentPacsError):
    """The database says that it cannot be read or written here and now; the message says what to look at."""


class IndexLost(LatentPacsError):
    """What was just committed went to a file that is not the index any more: it counts as not done."""


class BackupRefused(LatentPacsError):
    """A backup cannot be made, verified or restored here; the message says why, and what to do."""


class NewerFormat(LatentPacsError):
    """A newer version wrote this, and an older one must not touch it."""


class PurgeRefused(LatentPacsError):
    """The configuration forbids removing originals."""


class CorrectionRefused(LatentPacsError):
    """What somebody wants corrected, deleted or accepted must stay as it is; the message says why."""


class StoreFull(LatentPacsError):
    """No room for the bytes or for the row; nothing was stored."""


class InstanceTooLarge(LatentPacsError):
    """A data set larger than config.yaml takes; it was thrown away as it came."""


class Duplicate(LatentPacsError):
    """The SOP Instance UID is held already, with other content; the newcomer went to quarantine."""


class Deleted(LatentPacsError):
    """The SOP Instance UID was deleted here; what came under it went to quarantine."""


class NotReconstructable(LatentPacsError):
    """The image is outside the allow-list or failed the gate; only its original can be served."""

    def __init__(self, message: str, code: ReasonCode = ReasonCode.OTHER) -> None:
        super().__init__(message)
        self.code = code


class RenditionMismatch(LatentPacsError):
    """The pixels just made are not those that were verified; they must not leave."""


class ModelMissing(LatentPacsError):
    """The upscaler or the very weights that made a rendition are not installed."""


class WorkerDied(LatentPacsError):
    """The worker process ended in the middle of a request."""


class UnknownUid(LatentPacsError):
    """No image held here was ever known by that SOP Instance UID."""


class UnknownReport(LatentPacsError):
    """No audit or validation left the report that is asked for."""


class JobRefused(LatentPacsError):
    """No job of that name, or it is running already."""


class ConfigError(LatentPacsError):
    """config.yaml cannot be used; the message names the key and the nearest valid one."""
