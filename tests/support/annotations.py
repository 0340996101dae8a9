"""Makes mammography CAD reports and presentation states that mark regions of images."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid

from node.archive.intake.annotation_regions import GRAYSCALE_PRESENTATION_STATE, MAMMOGRAPHY_CAD_SR
from tests.support.samples import MAMMOGRAPHY


def item(**attributes: Any) -> Dataset:
    """A data set with these attributes. A list of data sets becomes a sequence."""
    made = Dataset()
    for keyword, value in attributes.items():
        many = isinstance(value, list) and (not value or isinstance(value[0], Dataset))
        setattr(made, keyword, Sequence(value) if many else value)
    return made


def code(value: str, meaning: str) -> list[Dataset]:
    return [item(CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)]


def references(*uids: str) -> list[Dataset]:
    return [item(ReferencedSOPClassUID=UID(MAMMOGRAPHY), ReferencedSOPInstanceUID=UID(uid)) for uid in uids]


def annotating(sop_class: str, modality: str, study: str) -> Dataset:
    """The attributes that reports and presentation states have in common."""
    return item(
        SOPClassUID=UID(sop_class),
        SOPInstanceUID=generate_uid(),
        StudyInstanceUID=study,
        SeriesInstanceUID=generate_uid(),
        Modality=modality,
        PatientID="P0001",
        PatientName="Muster^Anna",
        StudyDate="20260102",
        StudyTime="101112",
        InstanceNumber=1,
    )


def scoord(shape: str, data: list[float], *children: Dataset) -> Dataset:
    return item(
        RelationshipType="HAS PROPERTIES",
        ValueType="SCOORD",
        ConceptNameCodeSequence=code("111041", "Outline"),
        GraphicType=shape,
        GraphicData=data,
        ContentSequence=list(children),
    )


def selected_from(uid: str) -> Dataset:
    """Select the image of a coordinate by value."""
    return item(RelationshipType="SELECTED FROM", ValueType="IMAGE", ReferencedSOPSequence=references(uid))


def selected_by(*place: int) -> Dataset:
    """Select the image of a coordinate by reference to a content item."""
    return item(RelationshipType="SELECTED FROM", ReferencedContentItemIdentifier=list(place))


def finding(value: str, *children: Dataset) -> Dataset:
    """A single image finding of a kind (PS3.16 CID 6014)."""
    return item(
        RelationshipType="CONTAINS",
        ValueType="CODE",
        ConceptNameCodeSequence=code("111059", "Single Image Finding"),
        ConceptCodeSequence=code(value, "a finding"),
        ContentSequence=list(children),
    )


def cad_report(study: str, images: list[str], *findings: Dataset) -> Dataset:
    """A Mammography CAD SR. Its image library is content item 1.1, and its findings are below 1.2."""
    report = annotating(MAMMOGRAPHY_CAD_SR, "SR", study)
    library = [
        item(RelationshipType="CONTAINS", ValueType="IMAGE", ReferencedSOPSequence=references(uid)) for uid in images
    ]
    report.ValueType = "CONTAINER"
    report.ContentSequence = Sequence(
        [
            item(RelationshipType="CONTAINS", ValueType="CONTAINER", ContentSequence=library),
            item(RelationshipType="CONTAINS", ValueType="CONTAINER", ContentSequence=list(findings)),
        ]
    )
    return report


def graphic(shape: str, data: list[float], units: str = "PIXEL") -> Dataset:
    return item(
        GraphicAnnotationUnits=units,
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(data) // 2,
        GraphicData=data,
        GraphicType=shape,
    )


def presentation_state(study: str, images: list[str], *annotations: Dataset, **attributes: Any) -> Dataset:
    """A Grayscale Softcopy Presentation State of those images."""
    state = annotating(GRAYSCALE_PRESENTATION_STATE, "PR", study)
    series = item(SeriesInstanceUID=generate_uid(), ReferencedImageSequence=references(*images))
    state.ReferencedSeriesSequence = Sequence([series])
    state.GraphicAnnotationSequence = Sequence(list(annotations))
    for keyword, value in attributes.items():
        setattr(state, keyword, Sequence(value) if isinstance(value, list) else value)
    return state


def area(top_left: list[int], bottom_right: list[int], *images: str) -> Dataset:
    """A displayed area by column and row of its corner pixels, from 1."""
    made = item(DisplayedAreaTopLeftHandCorner=top_left, DisplayedAreaBottomRightHandCorner=bottom_right)
    if images:
        made.ReferencedImageSequence = Sequence(references(*images))
    return made
