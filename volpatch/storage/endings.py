"""Names that promise another format than the folder in OME-Zarr that would get them."""

from __future__ import annotations

import os

from volpatch.core.errors import TargetError

_FORMATS = {
    "a TIFF file": "tif tiff btf tf2 tf8 lsm stk",
    "a NIfTI file": "nii img hdr",
    "an HDF5 file": "h5 hdf5 hdf he5 nc mat ims",
    "an NRRD file": "nrrd nhdr",
    "a NumPy file": "npy npz",
    "an image file": "png jpg jpeg jp2 bmp gif webp dcm dicom",
    "an MRC file": "mrc mrcs rec",
    "a MetaImage file": "mha mhd",
    "a file of raw voxels": "raw bin dat",
    "a microscope's file": "czi lif nd2 oib oif vsi svs ndpi scn klb",
    "an N5 container": "n5",
    "an archive": "zip tar gz tgz bz2 xz zst 7z rar",
    "a film": "avi mp4 mov mkv",
    "a text file": "txt csv json yaml yml xml",
}
_ENDINGS = {f".{end}": kind for kind, ends in _FORMATS.items() for end in ends.split()}


def check_ending(target: str | os.PathLike[str]) -> None:
    """Refuse a name that ends like another format.

    >>> check_ending("out.ome.zarr")
    >>> check_ending("scans/out.nii.gz")
    Traceback (most recent call last):
    volpatch.core.errors.TargetError: the output 'scans/out.nii.gz' is named like an archive, \
and what is made is a folder in OME-Zarr; write 'scans/out.ome.zarr' instead
    """
    given = os.fspath(target)
    folder, name = os.path.split(given.rstrip(os.sep))
    stem, end = os.path.splitext(name)
    kind = _ENDINGS.get(end.lower())
    if kind is None:
        return
    while os.path.splitext(stem)[1].lower() in {*_ENDINGS, ".ome", ".zarr"}:
        stem = os.path.splitext(stem)[0]
    raise TargetError(
        f"the output {given!r} is named like {kind}, and what is made is a folder in OME-Zarr; "
        f"write {os.path.join(folder, f'{stem}.ome.zarr')!r} instead"
    )
