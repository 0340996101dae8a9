"""The errors that storage raises, and those that more than one package of node raises or handles.

An error that only one module of node raises is defined in that module, as a subclass of LatentPacsError.

LatentPacsError
├── DataSetError            a peer's data set is refused
│   ├── Unparseable         not DICOM, or truncated outside its pixel data
│   │   └── InflatesTooFar  a deflated data set that inflates beyond the limits
│   ├── MissingUid          no SOP Class, SOP Instance, Study or Series Instance UID
│   ├── ClassMismatch       the data set differs from the command that announced it
│   └── InvalidUid          a UID that PS3.5 section 9.1 does not allow
├── PixelError              the data set parses, but its pixels cannot be decoded or encoded
│   ├── TooManyPixels       a frame of more pixels than limits.pixels
│   ├── OutOfMemory         a worker would need more memory than limits.decoder_memory or limits.encoder_memory
│   └── OutOfTime           a decoder took more processor time than limits.decoder_time
├── PayloadError            a base or rendition that is damaged or of an unknown version
├── ObjectMissing           the store has no object with that digest
├── ObjectDamaged           an object whose bytes do not have its digest
├── KeptVerbatim            an original that has no smaller packed form
│   └── ProofFailed         the packed form does not unpack to the received bytes
├── OriginalPurged          retention removed the original; only its reconstruction is left
├── JournalDamaged          the audit trail's journal or the change journal cannot be read
├── IndexFault              the database cannot be read or written at present
├── IndexLost               the file of the index was removed or replaced while it was in use
├── Refused                 a rule of the archive forbids what a command or a job was to do; nothing was changed
│   ├── IndexRefused        an index that is empty, foreign, damaged, or older than the change journal
│   ├── BackupRefused       a backup that cannot be made, verified or restored
│   ├── NewerFormat         files or a schema that a newer version wrote
│   ├── PurgeRefused        the configuration does not allow retention to remove originals
│   ├── ChangeRefused       an amendment, deletion or acceptance from quarantine that the rules do not allow
│   └── JobRefused          the job does not exist, or it is already running
├── StoreFull               the disk, the quota or the database is full; nothing was stored
├── InstanceTooLarge        a data set larger than node.max_instance; nothing of it was stored
├── Duplicate               same SOP Instance UID, other content; the first instance is kept
├── Deleted                 the SOP Instance UID was deleted here; the new instance is quarantined
├── NotReconstructable      an image that may only be served bit-exact
├── RenditionMismatch       a reconstruction that differs from the one that was verified
├── ModelMissing            the weights that a rendition needs are not installed
├── WorkerDied              a worker process ended during a request
├── UnknownUid              no image, original or reconstruction, has that UID
├── UnknownReport           there is no report with that number
├── ExtraMissing            a feature needs packages that only an extra of latent-pacs installs
└── ConfigError             config.yaml is invalid
    └── NodeRunning         a node runs on the storage root, which only one process may use

Cancelled is outside the tree: it ends work on purpose, and is not a fault of the data.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

from storage.records import ReasonCode


class LatentPacsError(Exception):
    """Base of all errors above."""


class Cancelled(CancelledError):
    """A job, or a wait for a worker, was cancelled; the image at hand is left as it was."""


class DataSetError(LatentPacsError):
    """A data set from a peer is refused. Nothing of it is stored."""


class Unparseable(DataSetError):
    """The bytes are not a DICOM data set, or it is truncated outside its pixel data."""


class InflatesTooFar(Unparseable):
    """A deflated data set inflates to more than limits.inflated or limits.ratio allow."""


class MissingUid(DataSetError):
    """A UID that identifies the instance is absent or empty."""


class InvalidUid(DataSetError):
    """A UID violates PS3.5 section 9.1: digits and dots, at most 64 characters."""


class ClassMismatch(DataSetError):
    """SOP Class or Instance UID of the data set differ from the command's Affected UIDs."""


class PixelError(LatentPacsError):
    """The data set parses, but its pixels are short, inconsistent with the header, or cannot be decoded."""


class TooManyPixels(PixelError):
    """A frame has more pixels, by its header or its codestream, than limits.pixels allows."""


class OutOfMemory(PixelError):
    """A worker would need more memory than limits.decoder_memory or limits.encoder_memory allows."""


class OutOfTime(PixelError):
    """A decoder took more processor time than limits.decoder_time allows."""


class PayloadError(LatentPacsError):
    """The bytes of a base or rendition are damaged, or of a version that this release does not read."""


class ObjectMissing(LatentPacsError):
    """The store has no object with that digest."""


class ObjectDamaged(LatentPacsError):
    """The bytes of an object do not have its digest."""


class KeptVerbatim(LatentPacsError):
    """An original is stored as received. The message says why it is not packed."""


class ProofFailed(KeptVerbatim):
    """The packed form of an original does not unpack to the received bytes."""


class OriginalPurged(LatentPacsError):
    """Retention removed the original."""


class JournalDamaged(LatentPacsError):
    """A line of a journal is not a record of the audit trail, or not a change of the index."""


class Refused(LatentPacsError):
    """A rule of the archive forbids what a command or a job was to do. Nothing was changed."""


class IndexRefused(Refused):
    """The index does not match the objects beside it, or is damaged. The message says what to do."""


class IndexFault(LatentPacsError):
    """The database reports that it is locked, read-only, unreadable or damaged. The message says what to check."""


class IndexLost(LatentPacsError):
    """The last commit went to a file that is no longer the index, so it counts as not done."""


class BackupRefused(Refused):
    """A backup cannot be made, verified or restored. The message says why, and what to do."""


class NewerFormat(Refused):
    """A newer version wrote this. An older version must not change it."""


class PurgeRefused(Refused):
    """The configuration does not allow originals to be removed."""


class ChangeRefused(Refused):
    """An amendment, deletion or acceptance from quarantine is not allowed. The message says why."""


class StoreFull(LatentPacsError):
    """There is no room for the bytes or for the row. Nothing was stored."""


class InstanceTooLarge(LatentPacsError):
    """A data set is larger than node.max_instance. It was discarded while it was received."""


class Duplicate(LatentPacsError):
    """The SOP Instance UID is already stored with other content. The new instance is quarantined."""


class Deleted(LatentPacsError):
    """The SOP Instance UID was deleted here. The new instance is quarantined."""


class NotReconstructable(LatentPacsError):
    """The image is not on the allow-list or failed the gate. Only its original can be served."""

    def __init__(self, message: str, code: ReasonCode = ReasonCode.OTHER) -> None:
        super().__init__(message)
        self.code = code


class RenditionMismatch(LatentPacsError):
    """The decoded pixels are not those that were verified. They must not be sent."""


class ModelMissing(LatentPacsError):
    """The upscaler or the weights that made a rendition are not installed."""


class WorkerDied(LatentPacsError):
    """The worker process ended during a request."""


class UnknownUid(LatentPacsError):
    """No image that is or was stored here has that SOP Instance UID."""


class UnknownReport(LatentPacsError):
    """No audit or validation wrote the requested report."""


class JobRefused(Refused):
    """The job does not exist, or it is already running."""


class ExtraMissing(LatentPacsError):
    """A feature needs an extra that is not installed; the message gives the pip command."""


class ConfigError(LatentPacsError):
    """config.yaml is invalid. The message names the key, and the nearest valid one."""


class NodeRunning(ConfigError, Refused):
    """A node runs on the storage root, which only one process may use."""
