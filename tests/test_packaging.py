"""The wheel: one for every Python 3, and every name in it under sa_compile."""

import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(request.config.rootpath)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_one_wheel_serves_every_python_and_torch(wheel):
    assert "-py3-none-" in wheel.name


def test_only_sa_compile_reaches_the_top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0].split("-")[0] for name in names}
    assert top == {"sa_compile"}
    for module in (
        "sa_compile/passes/pipeline.py",
        "sa_compile/kernels/ops.py",
        "sa_compile/kernels/_C_cpu.so",
    ):
        assert module in names
    assert not [name for name in names if "csrc" in name]


def test_the_entry_point_is_the_backend(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    text = archive.read(entry_points).decode()
    assert "[torch_dynamo_backends]\nsampleattn = sa_compile.backend:sampleattn" in text.replace("\n\n", "\n")
