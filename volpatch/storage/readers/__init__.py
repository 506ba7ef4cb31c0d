"""One way to read a box of a volume for each kind of file; none of them knows another.

A reader fills an array with a box of voxels, and tells of the files that hold them. A new
format is a new module here, and a line in `volpatch.storage.open`.
"""
