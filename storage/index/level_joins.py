"""Joins a query of instances with the levels above them."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select

from storage.index.tables import instance, patient, series, study

Query = TypeVar("Query", bound=Select[Any])


def with_study(query: Query) -> Query:
    """The query with ``series`` and ``study``."""
    joined = query.join(series, instance.c.series_key == series.c.key)
    return joined.join(study, series.c.study_key == study.c.key)


def with_patient(query: Query) -> Query:
    """The query with ``series``, ``study`` and ``patient``."""
    return with_study(query).join(patient, study.c.patient_key == patient.c.key)
