"""The archive node: the DICOM door, the services behind it, and the commands that steer them."""
