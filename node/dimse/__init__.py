"""The DICOM server and client. Only this package uses pynetdicom."""
