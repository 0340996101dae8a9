"""Prior images: those of a patient's earlier studies, which are prefetched for comparison."""

from __future__ import annotations

from sqlalchemy import Engine, select

from storage.index.tables import instance, series, study


def prior_keys(engine: Engine, study_instance_uid: str, limit: int) -> list[int]:
    """Keys of at most ``limit`` instances with a rendition, of earlier studies of a study's patient, newest first.

    A patient is identified by Patient ID and issuer (storage.dicom.levels); one without an ID has no other studies.
    """
    current = study.alias("current")
    found = (
        select(instance.c.key)
        .join(series, instance.c.series_key == series.c.key)
        .join(study, series.c.study_key == study.c.key)
        .join(current, study.c.patient_key == current.c.patient_key)
        .where(
            current.c.study_instance_uid == study_instance_uid,
            study.c.key != current.c.key,
            study.c.study_date <= current.c.study_date,
            instance.c.rendition_key.is_not(None),
        )
        .order_by(study.c.study_date.desc(), study.c.study_time.desc(), series.c.key, instance.c.key)
        .limit(limit)
    )
    with engine.connect() as connection:
        return list(connection.execute(found).scalars())
