"""What leaves the archive: which object a peer gets, and how it is made."""
