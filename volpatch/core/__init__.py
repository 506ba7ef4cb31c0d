"""What a job means, without any data: patches, windows, axes, options.

    errors -> grid -> window -> blending        what determines the voxels of a result
              parse -> axes, options          the user's words, and the one form used inside

Imports nothing else of volpatch. Numbers and small frozen types only; no dask, no zarr.
"""
