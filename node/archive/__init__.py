"""The services of the archive: ingest, archivist, query, retrieve, and the rules they follow."""
