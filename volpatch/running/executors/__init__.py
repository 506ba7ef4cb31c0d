"""Kinds of workers: alternatives that do not know one another, see `volpatch.running.pool`."""
