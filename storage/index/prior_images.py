"""Which images of a patient came before a study: what its reader will want to compare it with."""

from __future__ import annotations

from sqlalchemy import Engine, select

from storage.index.tables import instance, series, study


def prior_keys(engine: Engine, study_instance_uid: str, limit: int) -> list[int]:
    """Keys of at most ``limit`` instances with a rendition, of earlier studies of a study's patient, newest first.

    The same patient is the same Patient ID and issuer (storage.dicom.levels); one without an ID has no other studies.
    """
    arrived = study.alias("arrived")
    found = (
        select(instance.c.key)
        .join(series, instance.c.series_key == series.c.key)
        .join(study, series.c.study_key == study.c.key)
        .join(arrived, study.c.patient_key == arrived.c.patient_key)
        .where(
            arrived.c.study_instance_uid == study_instance_uid,
            study.c.key != arrived.c.key,
            study.c.study_date <= arrived.c.study_date,
            instance.c.rendition_key.is_not(None),
        )
        .order_by(study.c.study_date.desc(), study.c.study_time.desc(), series.c.key, instance.c.key)
        .limit(limit)
    )
    with engine.connect() as connection:
        return list(connection.execute(found).scalars())
