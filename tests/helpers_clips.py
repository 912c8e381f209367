"""Videos for tests: folders of frames whose colour is their number, and files where the decoder is installed."""

from pathlib import Path

from PIL import Image

STEP = 10  # of the red of a frame, from one to the next


def frame_folder(folder: Path, frames: int, size: tuple[int, int] = (32, 24), first: int = 0) -> Path:
    """A folder of frames, the first with this number."""
    folder.mkdir(parents=True)
    for i in range(first, first + frames):
        Image.new("RGB", size, (STEP * i, 0, 0)).save(folder / f"{i:03d}.png")
    return folder


def video_file(file: Path, frames: int, fps: int = 10) -> Path:
    """A file with these frames, without loss."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "bgr0"
        for i in range(frames):
            picture = Image.new("RGB", (32, 24), (STEP * i, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return file


def numbers(frames) -> list[int]:
    """The numbers of frames of these videos."""
    return [round(frame.getpixel((0, 0))[0] / STEP) for frame in frames]
