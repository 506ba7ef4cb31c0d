"""What an output holds besides its image: groups, coordinates, and what it says of itself.

zarr makes the bytes, in memory; they are put as the image's objects are. The same output has the
same bytes, whoever writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from volpatch.core.axes import has_positions
from volpatch.storage.codec import TargetSpec
from volpatch.storage.compressors import Codec
from volpatch.storage.layers import IMAGE
from volpatch.storage.ngff import multiscales, omero
from volpatch.storage.plan_file import PlanFile

_NODE = "zarr.json"


def completion(file: PlanFile, spec: TargetSpec) -> dict[str, Any]:
    """What a finished output says of itself in its root's attributes."""
    return {"complete": True, "plan": file.id, "units": spec.n_units}


def own_version() -> str:
    try:
        return version("volpatch")
    except PackageNotFoundError:
        return "unknown"


def metadata_files(spec: TargetSpec, record: Mapping[str, Any]) -> dict[str, bytes]:
    """Groups, coordinates and an image without objects, by key; the root's own file is last.

    `record` is added to what the root's attributes say under 'volpatch'.
    """
    import zarr

    level = [(IMAGE, spec.spacing, spec.origin)]
    ome = multiscales(name=spec.name, dims=spec.dims, units=spec.units, datasets=level)
    if spec.channel_names is not None:
        ome["omero"] = omero(spec.channel_names, np.dtype(spec.dtype))
    # sorted, so that the bytes are the same when the spec comes from a file
    ours = dict(sorted({"version": own_version(), **spec.attributes, **record}.items()))
    held: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(held)
    root = zarr.create_group(store, zarr_format=3, attributes={"ome": ome, "volpatch": ours})
    scale = root.create_group("scale0")
    itemsize = np.dtype(spec.dtype).itemsize
    scale.create_array(
        "image",
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=Codec.parse(spec.codec).for_metadata(itemsize),
        filters=None,
        fill_value=0,
        dimension_names=spec.dims,
    )
    for dim, size, step, first, unit in zip(
        spec.dims, spec.shape, spec.spacing, spec.origin, spec.units, strict=True
    ):
        if has_positions(dim):
            scale.create_array(
                dim,
                data=first + step * np.arange(size, dtype=np.float64),
                chunks=(size,),
                compressors=Codec.parse("zstd").for_metadata(8),
                dimension_names=(dim,),
                attributes={} if unit is None else {"units": unit},
                config={"write_empty_chunks": True},  # a lone 0.0 is a value, not a gap
            )
    keys = sorted(held, key=lambda key: (-key.count("/"), key))
    return _consolidated({key: held[key].to_bytes() for key in keys})


def _consolidated(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Metadata files with a root that repeats what all others say, so that one read tells all.

    It is outside of the specification, but readers that do not know it pass it over. The bytes
    are those of `zarr.consolidate_metadata`, which zarr 3.1 cannot do under `python -O`.
    """
    root = json.loads(files[_NODE])
    below = {
        key.removesuffix(f"/{_NODE}"): json.loads(content)
        for key, content in files.items()
        if key.endswith(f"/{_NODE}")
    }
    order = sorted(below, key=lambda path: (path.count("/"), path))
    nodes = {path: _with_members(below[path], {}) for path in order}
    text = json.dumps(_with_members(root, nodes), indent=2)
    return {**files, _NODE: text.encode()}


def _with_members(node: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    """A group's metadata with those of its members; an array's as it is."""
    if node["node_type"] != "group":
        return node
    told = {"kind": "inline", "must_understand": False, "metadata": members}
    kind = node.pop("node_type")
    return {**node, "consolidated_metadata": told, "node_type": kind}
