"""The ready-made functions themselves: one array in, one array of the same shape out.

Each acts on all axes of the array it is given and knows nothing of patches; each voxel of the
result is made of voxels no farther away than its reach, by the same sums in the same order wherever
the array begins. So blocks with margins give the filter of the whole volume, bit for bit.

A module holds the functions of one kind, and lists what is known of them as `OPERATIONS`.
"""
