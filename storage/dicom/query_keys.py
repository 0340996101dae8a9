"""The C-FIND keys that this archive supports, at the four levels of the Query/Retrieve model (PS3.4 C.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.tag import BaseTag


class Level(StrEnum):
    """Query/Retrieve Level (0008,0052), from the highest to the lowest."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


@dataclass(frozen=True)
class Key:
    """A supported key. ``items``: the keys of a sequence."""

    keyword: str
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
        """Whether the dictionary has VM 1, so that a backslash does not separate values."""
        return dictionary_VM(self.tag) == "1"

    @cached_property
    def json_tag(self) -> str:
        return f"{self.tag:08X}"


def _keys(*keywords: str, sequences: Mapping[str, tuple[Key, ...]] | None = None) -> tuple[Key, ...]:
    return (*map(Key, keywords), *(Key(keyword, items) for keyword, items in (sequences or {}).items()))


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
    "PatientID",
    "PatientName",
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
    sequences={
        "IssuerOfPatientIDQualifiersSequence": _keys("UniversalEntityID", "UniversalEntityIDType"),
        "OtherPatientIDsSequence": _keys("PatientID", "IssuerOfPatientID", "TypeOfPatientID"),
        "PatientSpeciesCodeSequence": _CODE,
        "ReferencedPatientSequence": _REFERENCED_SOP,
    },
)

STUDY_KEYS = _keys(
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
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
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
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
    "SOPInstanceUID",
    "InstanceNumber",
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
    sequences={
        "ViewCodeSequence": (*_CODE, Key("ViewModifierCodeSequence", _CODE)),
        "AnatomicRegionSequence": (*_CODE, Key("AnatomicRegionModifierSequence", _CODE)),
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
            sequences={"RequestedProcedureCodeSequence": _CODE, "IssuerOfAccessionNumberSequence": _ISSUER},
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
"""The keys by level: the unique key first, then the required and the optional ones (PS3.4 C.6.1)."""

COMPUTED_KEYS = {
    Level.PATIENT: _keys(
        "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances"
    ),
    Level.STUDY: _keys(
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "ModalitiesInStudy", "SOPClassesInStudy"
    ),
    Level.SERIES: _keys("NumberOfSeriesRelatedInstances"),
    Level.IMAGE: (),
}
"""Keys that the index computes when a query requests them (PS3.4 C.3.4); no instance has them."""

OFFSET_FROM_UTC = Key("TimezoneOffsetFromUTC")
"""The time zone of the dates and times at a level. It is stored with the keys but is not itself matched."""


def offset_name(level: Level) -> str:
    """The name of the time zone of one level among attributes that were merged from several levels."""
    return f"{OFFSET_FROM_UTC.json_tag} {level}"
