"""The services of the archive: intake, encoding, query, retrieval, originals, deletion and the audit trail."""
