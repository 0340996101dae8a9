"""Reports of audits and validations: a row, a JSON file and a self-contained HTML page."""
