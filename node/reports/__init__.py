"""Reports of audits and validations: a row, a JSON file, and an HTML page that needs nothing but itself."""
