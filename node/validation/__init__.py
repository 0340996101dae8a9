"""Does a classifier do as well on what the archive gives back as on the originals?"""
