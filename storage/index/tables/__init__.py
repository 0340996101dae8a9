"""The tables of the index, as SQLAlchemy Core. A new index gets exactly these; storage/migrations upgrades an older
index to them.

patient ─< study ─< series ─< instance ─< rendition. Each level has the columns that queries narrow by. Its column
``attributes`` holds its attributes in the DICOM JSON model, which C-FIND matches exactly and answers from. The other
columns hold values as SQL compares them: person names folded (storage.dicom.levels.fold_name), times padded to
HHMMSS.FFFFFF, everything else as DICOM writes it. Text is compared by code point, on every database.
"""

from storage.index.tables.columns import metadata
from storage.index.tables.decision_tables import (
    amendment,
    class_label,
    hold,
    label,
    tombstone,
    tombstone_in_force,
    trail,
)
from storage.index.tables.image_tables import (
    archive,
    change,
    former_patient,
    instance,
    model_file,
    original,
    patient,
    quarantine,
    reference,
    reference_copy,
    rendition,
    series,
    study,
)
from storage.index.tables.work_tables import (
    commitment,
    damage,
    garbage,
    job,
    job_run,
    pin,
    replica,
    report,
    reverification,
)
