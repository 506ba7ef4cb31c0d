"""What people read: reports of runs, facts of volumes, progress, pictures.

May import planning and all below it.
"""
