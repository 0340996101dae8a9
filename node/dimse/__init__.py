"""The DICOM door: one handler per verb, one table from errors to statuses. The only user of pynetdicom."""
