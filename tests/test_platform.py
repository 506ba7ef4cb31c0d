"""Where a system has no POSIX locks: what needs none works, what writes says so."""

import json
import subprocess
import sys

WITHOUT_LOCKS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "fcntl":
            raise ImportError("no fcntl here")

sys.meta_path.insert(0, Blocked())
sys.modules.pop("fcntl", None)

import json
import numpy as np, tifffile
import volpatch

folder = sys.argv[1]
image = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
tifffile.imwrite(folder + "/in.tif", image)
alike = [np.allclose(volpatch.map_patches(lambda p: p, image, 4), image)]
lazy = volpatch.map_patches(lambda p: p, volpatch.open_volume(folder + "/in.tif"), 4)
alike.append(np.allclose(lazy.compute().values, image))
grid = volpatch.PatchGrid(image.shape, 4, 2)
alike.append(np.allclose(volpatch.merge(volpatch.extract(image, grid), grid), image))
alike.append(len(list(volpatch.iter_patches(image, 4))) > 0)
said = []
for call in (
    lambda: volpatch.run("identity", folder + "/in.tif", folder + "/out.zarr", patch=4),
    lambda: volpatch.to_zarr(image, folder + "/out.zarr"),
):
    try:
        call()
    except volpatch.SettingError as error:
        said.append(str(error))
print(json.dumps([list(map(bool, alike)), said, "fcntl" in sys.modules]))
"""


def test_all_but_writing_works_without_posix_locks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    alike, said, imported = json.loads(done.stdout)
    assert alike == [True] * 4
    assert not imported
    assert len(said) == 2
    for text in said:
        assert text.startswith("volpatch writes volumes on POSIX systems (Linux, macOS, WSL)")
        assert text.endswith("here it computes in memory and lazily (map_patches)")
    assert [file.name for file in tmp_path.iterdir()] == ["in.tif"]
