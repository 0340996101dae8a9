"""The encoder: from an original to a payload that passes the gate."""
