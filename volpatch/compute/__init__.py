"""Cut, call, blend: the loops, and one region streamed through them in bounded memory.

    buffers -> kernels -> blend -> stream      a region, plane by plane
                                `-> inmemory   the same for an array that is there

Works on NumPy arrays by compiled loops; knows no file, no dask, no xarray. May import core.
"""
