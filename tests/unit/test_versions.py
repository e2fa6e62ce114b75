import json
import subprocess
import sys
from pathlib import Path

import brt_dist
from brt_dist.versions import library_versions

ROOT = Path(brt_dist.__file__).parent.parent


def test_code_that_was_shipped_without_its_installation_knows_its_version(tmp_path: Path) -> None:
    (tmp_path / "brt_dist.egg-info").mkdir()  # what is left of an editable checkout when only its code is copied
    (tmp_path / "brt_dist").symlink_to(ROOT / "brt_dist")
    code = "import json; from brt_dist.versions import library_versions; print(json.dumps(library_versions()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == library_versions() and found["brt_dist"] == brt_dist.__version__
    assert {"python", "torch", "deepspeed", "megatron-core", "ray", "numpy"} < set(found)
