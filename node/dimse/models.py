"""The Query/Retrieve SOP classes offered, and the information model of each (PS3.4 C.6)."""

from __future__ import annotations

from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    PatientStudyOnlyQueryRetrieveInformationModelFind,
    PatientStudyOnlyQueryRetrieveInformationModelGet,
    PatientStudyOnlyQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from node.archive.identifier import Root

ROOTS: dict[str, Root] = {
    PatientRootQueryRetrieveInformationModelFind: Root.PATIENT,
    PatientRootQueryRetrieveInformationModelMove: Root.PATIENT,
    PatientRootQueryRetrieveInformationModelGet: Root.PATIENT,
    StudyRootQueryRetrieveInformationModelFind: Root.STUDY,
    StudyRootQueryRetrieveInformationModelMove: Root.STUDY,
    StudyRootQueryRetrieveInformationModelGet: Root.STUDY,
    PatientStudyOnlyQueryRetrieveInformationModelFind: Root.PATIENT_STUDY,
    PatientStudyOnlyQueryRetrieveInformationModelMove: Root.PATIENT_STUDY,
    PatientStudyOnlyQueryRetrieveInformationModelGet: Root.PATIENT_STUDY,
}
"""SOP class UID to information model; the keys are what the server offers."""
