"""Arrays in, arrays out: NumPy, dask and xarray, by the same loops and with the same bits.

May import planning and all below it, never running.
"""
