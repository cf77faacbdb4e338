"""The packaged bundles by the three routes that MONAI's own client takes: a URL, a GitHub release, Hugging Face."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import monai.apps.utils
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from helpers import BUNDLES, REPOSITORY, existing

PACKAGE = REPOSITORY / ".ci" / "package_bundles.py"
NAMES = [path.parents[1].name for path in existing(BUNDLES.glob("*/configs/metadata.json"))]
pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """What ``make package`` writes, of the bundles that have metadata."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "bundles").mkdir()
    for name in NAMES:
        (folder / "bundles" / name).symlink_to(BUNDLES / name, target_is_directory=True)
    line = [sys.executable, str(PACKAGE), "--bundles", str(folder / "bundles"), "--output", str(folder / "dist")]
    subprocess.run(line, check=True, capture_output=True)
    return folder / "dist"


@contextmanager
def served(handler) -> Iterator[str]:
    """Serve on a free port of this machine; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address(dist) -> Iterator[str]:
    """The archives on a plain web server."""
    with served(partial(QuietFiles, directory=str(dist))) as server:
        yield server


def download(*options: str, **variables: str) -> None:
    line = [sys.executable, "-m", "monai.bundle", "download", "--progress", "False", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1", **variables}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "metadata file not found" not in done.stdout + done.stderr  # MONAI's only sign of a wrong archive


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def packaged(dist: Path, name: str, version: str = "0.1.0") -> dict[str, bytes]:
    with zipfile.ZipFile(dist / f"{name}_v{version}.zip") as archive:
        return {entry.removeprefix(f"{name}/"): archive.read(entry) for entry in archive.namelist()}


def test_sums_are_those_of_all_archives(dist):
    lines = (dist / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in lines)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.glob("*.zip")}
    assert sums == found and len(lines) == len(NAMES)


def test_archives_have_the_layout_that_the_client_expects(dist):
    wrong = {}
    for name in NAMES:
        version = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())["version"]
        with zipfile.ZipFile(dist / f"{name}_v{version}.zip") as archive:
            entries = set(archive.namelist())
        missing = {f"{name}/LICENSE", f"{name}/configs/metadata.json", f"{name}/docs/README.md"} - entries
        if missing or {Path(entry).parts[0] for entry in entries} != {name}:
            wrong[name] = sorted(missing) or sorted(entries)
    assert wrong == {}


def test_download_from_a_url_segments_a_scan(dist, address, data, command, tmp_path):
    url = f"{address}/msd_seg_v0.1.0.zip"
    download("--name", "msd_seg", "--url", url, "--bundle_dir", str(tmp_path / "bundles"))
    assert contents(tmp_path / "bundles" / "msd_seg") == packaged(dist, "msd_seg")

    scan = data / "imagesTs" / "phantom_006.nii.gz"
    config = tmp_path / "bundles" / "msd_seg" / "configs" / "inference.json"
    (tmp_path / "elsewhere").mkdir()
    output = command(config, "--input", str(scan), "--output_dir", "results", cwd=tmp_path / "elsewhere")
    assert f"tensors from {tmp_path / 'bundles' / 'msd_seg' / 'models' / 'model.pt'}" in output
    image, found = nib.load(scan), nib.load(tmp_path / "elsewhere" / "results" / "phantom_006_seg.nii.gz")
    assert found.shape == image.shape and np.asarray(found.dataobj).max() <= 2
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_github_release_is_asked_for_the_name_that_packaging_gives(name, dist, address, tmp_path, monkeypatch):
    version = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())["version"]
    release = f"https://github.com/OWNER/REPO/releases/download/v{version}/"
    asked = []

    def retrieve(url: str, path: Path, reporthook=None):
        asked.append(url)
        return urllib.request.urlretrieve(url.replace(release, f"{address}/"), path, reporthook)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(monai.apps.utils, "urlretrieve", retrieve)
    repo = f"OWNER/REPO/v{version}"
    monai.bundle.download(
        name=name, version=version, source="github", repo=repo, bundle_dir=str(tmp_path), progress=False
    )
    assert asked == [f"{release}{name}_v{version}.zip"]
    assert contents(tmp_path / name) == packaged(dist, name, version)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as downloading a model repository at a tag needs."""

    files: dict[str, bytes] = {}  # noqa: RUF012  # filled by the test
    tags = ("0.1.0", "latest_version")

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/api/models").removeprefix("/OWNER/msd_seg/")
        kind, _, rest = path.partition("/")
        if kind == "resolve" and rest.startswith(f"{COMMIT}/"):
            body = self.files[rest.removeprefix(f"{COMMIT}/")]
            return self.answer(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"')
        if kind == "revision" and rest in self.tags:
            told: object = {"id": "OWNER/msd_seg", "sha": COMMIT, "siblings": []}
        elif kind == "tree" and rest == COMMIT:
            told = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.files.items()
            ]
        elif kind == "refs":
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": COMMIT} for tag in self.tags]
            told = {"branches": [], "converts": [], "tags": tags}
        else:
            return self.send_error(404)
        return self.answer(json.dumps(told).encode(), Content_Type="application/json")

    do_HEAD = do_GET  # noqa: N815  # the name that http.server calls


@pytest.mark.parametrize("version", [("--version", "0.1.0"), ()], ids=["0.1.0", "latest"])
def test_download_from_hugging_face(version, dist, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", exc_type=ImportError)
    monkeypatch.setattr(Hub, "files", packaged(dist, "msd_seg"))
    with served(Hub) as address:
        options = ("--name", "msd_seg", "--source", "huggingface_hub", "--repo", "OWNER/msd_seg", *version)
        variables = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        download(*options, "--bundle_dir", str(tmp_path / "bundles"), **variables)
    assert contents(tmp_path / "bundles" / "msd_seg") == Hub.files
