"""Patches for a loop of one's own: all of a grid in a chunk-friendly order, or a random few."""

from volpatch.sampling.batches import iter_patches as iter_patches
from volpatch.sampling.samples import Samples as Samples
from volpatch.sampling.samples import sample_patches as sample_patches
