"""What `pip install` makes of the project and of its client works from any folder.

Packages that they depend on are those of this environment: nothing is fetched.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import infinitetalk

CHECKOUT = Path(__file__).parents[1]


def install(project: Path, names: tuple[str, ...], folder: Path) -> None:
    """Installs a project, of which `names` are the files that matter, without what it depends on, into a folder."""
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    # A copy, since a build leaves files beside what it builds.
    copied = folder / "source"
    copied.mkdir()
    for name in names:
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, copied / name)
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "installed"), str(copied)]
    subprocess.run(command, check=True, timeout=300)


def run_elsewhere(folder: Path, *arguments: str) -> str:
    """What Python prints in a folder that has nothing of the checkout, with what is installed."""
    (folder / "elsewhere").mkdir()
    environment = os.environ | {"PYTHONPATH": str(folder / "installed")}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder / "elsewhere", env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout


def test_the_library_example_runs_from_another_folder(tmp_path: Path) -> None:
    install(CHECKOUT, ("pyproject.toml", "requirements.txt", "infinitetalk", "schemas"), tmp_path)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    shorter = example.replace("num_inference_steps=4", "num_inference_steps=1, frame_num=9, max_frame_num=9")
    shorter = shorter.replace('Path("examples/media")', f"Path({str(CHECKOUT / 'examples/media')!r})")
    shorter += "\nprint(it.__file__, it.__version__)"
    printed = run_elsewhere(tmp_path, "-c", shorter).splitlines()
    assert printed == ["(9, 128, 128, 3)", f"{tmp_path}/installed/infinitetalk/__init__.py {infinitetalk.__version__}"]


def test_the_client_is_installed_by_itself_and_needs_no_torch(tmp_path: Path) -> None:
    install(CHECKOUT / "examples", ("pyproject.toml", "infinitetalk_client"), tmp_path)
    assert {path.name for path in (tmp_path / "installed").glob("[!_]*")} >= {"infinitetalk_client", "bin"}
    program = "import infinitetalk_client, sys; print(infinitetalk_client.__file__, 'torch' in sys.modules)"
    assert run_elsewhere(tmp_path, "-c", program) == f"{tmp_path}/installed/infinitetalk_client/__init__.py False\n"
    command = [tmp_path / "installed/bin/infinitetalk-client", "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    helped = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert "usage: infinitetalk-client" in helped.stdout


def test_importing_the_package_takes_no_torch() -> None:
    program = "import infinitetalk, sys; print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
