"""Encodes an original to the smallest payload that passes the gate."""
