"""What C-FIND knows of an instance: attributes at the four levels of the Query/Retrieve model (PS3.4 C.6).

``levels_of`` never raises for one bad element: what is not a value of its VR is left out, as if absent.
Values stay as the modality wrote them: no time zone is applied, no case is changed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from pydicom import Dataset
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.tag import BaseTag

from storage.dicom.elements import BadValueError, checked, codecs_of, items_of, values_of
from storage.records import DicomJson, Levels


class Level(StrEnum):
    """Query/Retrieve Level (0008,0052), from the top down."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


# --- the supported keys (the conformance statement is generated from these) ---


@dataclass(frozen=True)
class Key:
    """A supported key. ``kind``: U(nique), R(equired) or O(ptional); ``items``: the keys of a sequence."""

    keyword: str
    kind: Literal["U", "R", "O"] = "O"
    items: tuple[Key, ...] = ()

    @cached_property
    def tag(self) -> BaseTag:
        tag = tag_for_keyword(self.keyword)
        assert tag is not None, self.keyword
        return BaseTag(tag)

    @cached_property
    def vr(self) -> str:
        return dictionary_VR(self.tag)

    @cached_property
    def single(self) -> bool:
        """VM 1 in the dictionary: then a backslash inside does not make two values of it."""
        return dictionary_VM(self.tag) == "1"

    @cached_property
    def json_tag(self) -> str:
        return f"{self.tag:08X}"


def _keys(
    *optional: str,
    unique: str = "",
    required: Sequence[str] = (),
    sequences: Mapping[str, tuple[Key, ...]] | None = None,
) -> tuple[Key, ...]:
    keys = [Key(unique, "U")] if unique else []
    keys += [Key(keyword, "R") for keyword in required]
    keys += [Key(keyword) for keyword in optional]
    keys += [Key(keyword, items=items) for keyword, items in (sequences or {}).items()]
    return tuple(keys)


_CODE = _keys(
    "CodeValue",
    "LongCodeValue",
    "URNCodeValue",
    "CodingSchemeDesignator",
    "CodingSchemeVersion",
    "CodeMeaning",
)
_REFERENCED_SOP = _keys("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
_ISSUER = _keys("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")

PATIENT_KEYS = _keys(
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "EthnicGroup",
    "PatientComments",
    "PatientSpeciesDescription",
    "PatientBreedDescription",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "QualityControlSubject",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    unique="PatientID",
    required=("PatientName",),
    sequences={
        "IssuerOfPatientIDQualifiersSequence": _keys("UniversalEntityID", "UniversalEntityIDType"),
        "OtherPatientIDsSequence": _keys("PatientID", "IssuerOfPatientID", "TypeOfPatientID"),
        "PatientSpeciesCodeSequence": _CODE,
        "ReferencedPatientSequence": _REFERENCED_SOP,
    },
)

STUDY_KEYS = _keys(
    "StudyDescription",
    "ReferringPhysicianName",
    "ConsultingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "RequestingService",
    "AdmittingDiagnosesDescription",
    "RequestedProcedureDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientBodyMassIndex",
    "Occupation",
    "AdditionalPatientHistory",
    "MedicalAlerts",
    "Allergies",
    "SmokingStatus",
    "PregnancyStatus",
    "LastMenstrualDate",
    "PatientState",
    "PatientSexNeutered",
    "AdmissionID",
    "ServiceEpisodeID",
    "StudyComments",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    unique="StudyInstanceUID",
    required=("StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
    sequences={
        "IssuerOfAccessionNumberSequence": _ISSUER,
        "IssuerOfAdmissionIDSequence": _ISSUER,
        "ProcedureCodeSequence": _CODE,
        "ReasonForPerformedProcedureCodeSequence": _CODE,
        "RequestedProcedureCodeSequence": _CODE,
        "AdmittingDiagnosesCodeSequence": _CODE,
        "ReferencedStudySequence": _REFERENCED_SOP,
    },
)

SERIES_KEYS = _keys(
    "SeriesDescription",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "Laterality",
    "ProtocolName",
    "PatientPosition",
    "PerformingPhysicianName",
    "OperatorsName",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "StationName",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "FrameOfReferenceUID",
    "PerformedProcedureStepID",
    "PerformedProcedureStepDescription",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepEndDate",
    "PerformedProcedureStepEndTime",
    "CommentsOnThePerformedProcedureStep",
    "ClinicalTrialSeriesID",
    "ClinicalTrialSeriesDescription",
    unique="SeriesInstanceUID",
    required=("Modality", "SeriesNumber"),
    sequences={
        "SeriesDescriptionCodeSequence": _CODE,
        "InstitutionCodeSequence": _CODE,
        "PerformedProtocolCodeSequence": _CODE,
        "ReferencedPerformedProcedureStepSequence": _REFERENCED_SOP,
        "RequestAttributesSequence": _keys(
            "RequestedProcedureID",
            "ScheduledProcedureStepID",
            "ScheduledProcedureStepDescription",
            "RequestedProcedureDescription",
            "ReasonForTheRequestedProcedure",
            "AccessionNumber",
            "StudyInstanceUID",
            sequences={
                "ScheduledProtocolCodeSequence": _CODE,
                "RequestedProcedureCodeSequence": _CODE,
                "IssuerOfAccessionNumberSequence": _ISSUER,
            },
        ),
    },
)

IMAGE_KEYS = _keys(
    "SOPClassUID",
    "ImageType",
    "ImageComments",
    "AcquisitionNumber",
    "ContentDate",
    "ContentTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "SamplesPerPixel",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PresentationIntentType",
    "ImageLaterality",
    "ViewPosition",
    "PatientOrientation",
    "PartialView",
    "PartialViewDescription",
    "BreastImplantPresent",
    "OrganExposed",
    "KVP",
    "Exposure",
    "ExposureTime",
    "XRayTubeCurrent",
    "AnodeTargetMaterial",
    "FilterMaterial",
    "BodyPartThickness",
    "CompressionForce",
    "OrganDose",
    "EntranceDoseInmGy",
    "EstimatedRadiographicMagnificationFactor",
    "DetectorType",
    "DetectorID",
    "QualityControlImage",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "DerivationDescription",
    "SyntheticData",
    "PresentationLUTShape",
    "ContentLabel",
    "ContentDescription",
    "ContentCreatorName",
    "PresentationCreationDate",
    "PresentationCreationTime",
    "CompletionFlag",
    "VerificationFlag",
    "DocumentTitle",
    "MIMETypeOfEncapsulatedDocument",
    unique="SOPInstanceUID",
    required=("InstanceNumber",),
    sequences={
        "ViewCodeSequence": (*_CODE, Key("ViewModifierCodeSequence", items=_CODE)),
        "AnatomicRegionSequence": (*_CODE, Key("AnatomicRegionModifierSequence", items=_CODE)),
        "DerivationCodeSequence": _CODE,
        "ConceptNameCodeSequence": _CODE,
        "ContentTemplateSequence": _keys("MappingResource", "TemplateIdentifier"),
        "ReferencedRequestSequence": _keys(
            "StudyInstanceUID",
            "AccessionNumber",
            "PlacerOrderNumberImagingServiceRequest",
            "FillerOrderNumberImagingServiceRequest",
            "RequestedProcedureID",
            "RequestedProcedureDescription",
            sequences={
                "RequestedProcedureCodeSequence": _CODE,
                "IssuerOfAccessionNumberSequence": _ISSUER,
            },
        ),
        "VerifyingObserverSequence": _keys("VerifyingObserverName", "VerifyingOrganization", "VerificationDateTime"),
    },
)

KEYS = {
    Level.PATIENT: PATIENT_KEYS,
    Level.STUDY: STUDY_KEYS,
    Level.SERIES: SERIES_KEYS,
    Level.IMAGE: IMAGE_KEYS,
}

COMPUTED_KEYS = {
    Level.PATIENT: _keys(
        "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances"
    ),
    Level.STUDY: _keys(
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "ModalitiesInStudy",
        "SOPClassesInStudy",
    ),
    Level.SERIES: _keys("NumberOfSeriesRelatedInstances"),
    Level.IMAGE: (),
}
"""Keys that no instance holds: the index computes them when they are asked for (PS3.4 C.3.4)."""

OFFSET_FROM_UTC = Key("TimezoneOffsetFromUTC")
"""Not matched itself; kept beside the keys of a level, it says in which zone their dates and times are."""

# --- an instance's attributes, per level ---


def levels_of(dataset: Dataset) -> Levels:
    """The supported attributes of a data set, per level, in the DICOM JSON model (PS3.18 F). Never raises."""
    codecs = codecs_of(dataset)
    return Levels(
        patient=_attributes(dataset, PATIENT_KEYS, codecs),
        study=_attributes(dataset, (*STUDY_KEYS, OFFSET_FROM_UTC), codecs),
        series=_attributes(dataset, (*SERIES_KEYS, OFFSET_FROM_UTC), codecs),
        instance=_attributes(dataset, (*IMAGE_KEYS, OFFSET_FROM_UTC), codecs),
    )


def _attributes(dataset: Dataset, keys: tuple[Key, ...], codecs: Sequence[str]) -> DicomJson:
    found: DicomJson = {}
    for key in keys:
        if key.tag not in dataset:
            continue
        try:
            values = _values(dataset, key, codecs)
        except Exception:  # noqa: BLE001 - one hostile element must not cost the instance
            continue
        if any(value is not None for value in values):
            found[key.json_tag] = {"vr": key.vr, "Value": values}
    return found


def _values(dataset: Dataset, key: Key, codecs: Sequence[str]) -> list[Any]:
    if key.vr == "SQ":
        items = items_of(dataset, key.tag, codecs)
        if len(items) > _MOST_ITEMS:
            raise BadValueError("SQ")
        return [kept for item in items if (kept := _attributes(item, key.items, codecs_of(item, codecs)))]
    values = values_of(dataset, key.tag, key.vr, codecs, single=key.single)
    if key.keyword == "PatientName" and any(len(fold_name(value)) > NAME_WIDTH for value in values):
        raise BadValueError("PN")
    if key.single and len(values) > 1:
        raise BadValueError("more than one value")
    longest = _INDEXED.get(key.keyword)
    return [None if value == "" else checked(value, key.vr, longest) for value in values]


_MOST_ITEMS = 100

# --- the columns that queries narrow by ---

NAME_WIDTH = 200
_INDEXED = {  # as wide as their columns in storage/index/tables.py: a longer value is left out, never cut
    "PatientID": 64,
    "IssuerOfPatientID": 64,
    "PatientName": NAME_WIDTH,
    "PatientSex": 16,
    "AccessionNumber": 64,
    "StudyID": 64,
    "Modality": 16,
}


def columns_of(levels: Levels) -> dict[str, dict[str, Any]]:
    """Column values per table of storage/index/tables.py, ``attributes`` included.

    ``identity`` is patient ID and issuer; a patient without an ID is one of its own per study, so that
    anonymous patients are never merged. ``name`` is folded (fold_name), ``study_time`` filled (fill_time).
    """
    patient_id = _first(levels.patient, "00100020")
    issuer = _first(levels.patient, "00100021")
    study_uid = _first(levels.study, "0020000D")
    number = levels.instance.get("00200013", {}).get("Value", [None])[0]
    return {
        "patient": {
            "identity": f"{patient_id}\t{issuer}" if patient_id else f"\t{study_uid}",
            "patient_id": patient_id,
            "name": fold_name(_joined_name(levels.patient)),
            "birth_date": _first(levels.patient, "00100030"),
            "sex": _first(levels.patient, "00100040"),
            "attributes": levels.patient,
        },
        "study": {
            "study_instance_uid": study_uid,
            "study_date": _first(levels.study, "00080020"),
            "study_time": fill_time(_first(levels.study, "00080030")),
            "accession_number": _first(levels.study, "00080050"),
            "study_id": _first(levels.study, "00200010"),
            "attributes": levels.study,
        },
        "series": {
            "series_instance_uid": _first(levels.series, "0020000E"),
            "modality": _first(levels.series, "00080060"),
            "attributes": levels.series,
        },
        "instance": {
            "sop_instance_uid": _first(levels.instance, "00080018"),
            "sop_class_uid": _first(levels.instance, "00080016"),
            "instance_number": number,
            "attributes": levels.instance,
        },
    }


def _first(attributes: DicomJson, json_tag: str) -> str:
    values = attributes.get(json_tag, {}).get("Value") or [""]
    return str(values[0] or "")


def _joined_name(attributes: DicomJson) -> str:
    name = (attributes.get("00100010", {}).get("Value") or [{}])[0] or {}
    return "=".join(name.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")


def fold_name(name: str) -> str:
    """A person name as names are compared: without case, accents, width variants, empty trailing parts.

    PS3.4 C.2.2.2.1.1 leaves this to us. Accents are U+0300 to U+036F; a Japanese voiced mark is none.
    """
    if not name.isascii():
        apart = unicodedata.normalize("NFKD", name)
        name = unicodedata.normalize("NFC", "".join(c for c in apart if not "\u0300" <= c <= "\u036f"))
    groups = name.casefold().split("=")
    return "=".join("^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups)


def fill_time(time: str) -> str:
    """A TM value with all its components, HHMMSS.FFFFFF: the earliest moment that it can mean."""
    if not time:
        return ""
    whole, _, fraction = time.partition(".")
    return f"{whole:0<6}.{fraction:0<6}"
