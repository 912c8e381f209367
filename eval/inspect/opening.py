"""Opens the picture, or the frames of the clip, that is to be inspected."""

import re
from pathlib import Path

from PIL import Image, ImageOps

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.pictures import rgb


def open_picture(image: object) -> tuple[Image.Image, str | None]:
    """A picture in RGB, from a path (rotated upright by its EXIF data) or from PIL, and the file's name, if any.
    Raises ConfigError."""
    if isinstance(image, Image.Image):
        return rgb(image), None
    if not isinstance(image, str | Path):
        raise ConfigError(f"image has type {type(image).__name__}; possible: a path, or a PIL picture")
    try:
        with Image.open(Path(image).expanduser()) as opened:
            return rgb(ImageOps.exif_transpose(opened)), Path(image).name
    except FileNotFoundError:
        raise ConfigError(f"image {str(image)!r} does not exist; possible: a picture's file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "it is no picture that Pillow can read, or it is damaged"
        raise ConfigError(f"image {str(image)!r} cannot be opened: {why}; possible: a picture's file") from None


def open_frames(clip: object) -> tuple[list[Image.Image], str | None]:
    """The frames of a clip in RGB, from a folder of pictures (by name, numbers in it as numbers) or a list of pictures,
    and the folder's name. Raises ConfigError, also where they differ in size."""
    if isinstance(clip, str | Path):
        files, name = _files(Path(clip).expanduser()), Path(clip).expanduser().resolve().name
    else:
        files, name = list(clip), None
    if not files:
        raise ConfigError("the clip has no frames; possible: a folder of pictures, or a list of some")
    frames = [open_picture(file)[0] for file in files]
    for i, (frame, file) in enumerate(zip(frames, files)):
        if frame.size != frames[0].size:
            which = repr(file.name) if isinstance(file, Path) else str(i)
            raise ConfigError(
                f"frame {which} has {frame.width} x {frame.height} pixels, the first one {frames[0].width} x "
                f"{frames[0].height}; possible: pictures of one size"
            )
    return frames, name


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"--frames {shown(str(folder))} is no folder; possible: a folder of pictures")
    known = Image.registered_extensions()
    files = [file for file in folder.iterdir() if file.suffix.lower() in known and not file.name.startswith(".")]
    if not files:
        raise ConfigError(f"--frames {shown(str(folder))} holds no pictures; possible: files such as 0001.png")
    parts = {file: re.split(r"(\d+)", file.name) for file in files}
    return sorted(files, key=lambda file: ([int(x) if x.isdecimal() else x for x in parts[file]], file.name))
