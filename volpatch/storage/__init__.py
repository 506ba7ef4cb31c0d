"""Volumes on disk: opened by readers, written whole unit by unit, and what is recorded of it.

    readers/ -> open       files of any kind, as one kind of volume
    codec -> layers        whole write units, encoded in memory
    stores/ -> output      absent -> building -> complete, and the ledger of what is done

May import core. Readers do not know one another, nor do stores.
"""
