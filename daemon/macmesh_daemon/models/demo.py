"""The demo model that ships with the package."""

from importlib import resources
from pathlib import Path


def demo_model_folder() -> Path:
    """The folder of the demo model, in Hugging Face format; read-only.

    `python -m macmesh_daemon.engine.demo_model FOLDER` makes one like it.

    Raises:
        FileNotFoundError: The package was installed without its data, or into an archive.
    """
    folder = resources.files("macmesh_daemon.models") / "demo_model"
    if not isinstance(folder, Path) or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the demo model is not at {folder}; install macmesh anew, unpacked")
    return folder
