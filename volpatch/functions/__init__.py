"""The user's function: by name, with its parameters, or ready-made.

    filters -> registry -> named

May import core. A new ready-made operation is a function in `filters` and a line in `registry`.
"""
