"""Volumes on disk: opened as a `Source` (Zarr, OME-Zarr, TIFF), written whole unit by unit."""
