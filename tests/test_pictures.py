"""Pictures of data: every form and every mode arrives in 8-bit RGB, and what is none is one short line."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vtc.core.errors import ConfigError
from vtc.eval.data.pictures import nothing, picture, rgb
from vtc.eval.models import load

RAMP = np.linspace(0, 255, 30 * 20).round().reshape(20, 30).astype(np.uint8)
GREY = Image.fromarray(RAMP)


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


# 257 times as large in 16 bits, a fraction in floats; the rest is Pillow's own conversion.
DEEP = {
    "I;16": Image.fromarray(RAMP.astype(np.uint16) * 257),
    "I;16B": Image.frombytes("I;16B", GREY.size, (RAMP.astype(">u2") * 257).tobytes()),
    "16 bits of 32": Image.fromarray(RAMP.astype(np.int32) * 257),
    "8 bits of 32": Image.fromarray(RAMP.astype(np.int32)),
    "signed": Image.fromarray(RAMP.astype(np.int32) * 1000 - 90_000),
    "fractions": Image.fromarray(RAMP.astype(np.float32) / 255),
    "floats of 8 bits": Image.fromarray(RAMP.astype(np.float32)),
    "floats of 16 bits": Image.fromarray(RAMP.astype(np.float32) * 257),
    "16-bit file": Image.open(io.BytesIO(file_of(Image.fromarray(RAMP.astype(np.uint16) * 257)))),
    "float file": Image.open(io.BytesIO(file_of(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"))),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_pictures_are_scaled(name):
    """More than 8 bits become the same 8-bit grey."""
    found = rgb(DEEP[name])
    assert (found.mode, found.size) == ("RGB", GREY.size)
    assert np.array_equal(np.asarray(found), np.asarray(GREY.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"])
def test_other_modes(mode):
    """A uniform grey of every mode stays that grey; of 1 bit, white."""
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    image = Image.new("L", (4, 3), 255 if mode == "1" else 120)
    image = (image.convert(through) if through else image).convert(mode)
    found = np.asarray(rgb(image))
    assert found.shape == (3, 4, 3)
    assert np.abs(found.astype(int) - (255 if mode == "1" else 120)).max() <= 2


def test_values_that_are_no_numbers():
    """A float picture with NaN in it is refused."""
    with pytest.raises(ConfigError, match="'F' holds values that are no numbers"):
        rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_forms(tmp_path):
    """Files, bytes, base64 of two alphabets, data URIs, and what datasets gives: the same picture, whatever column."""
    data = file_of(GREY)
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    (tmp_path / "g.png").write_bytes(data)
    forms = (
        GREY, data, bytearray(data), "g.png", tmp_path / "g.png", text, lines, base64.urlsafe_b64encode(data).decode(),
        text.rstrip("="), text.encode(), f"data:image/png;base64,{text}", {"bytes": data, "path": None},
        {"bytes": None, "path": "g.png"}, {"path": "g.png"}, {"bytes": text, "path": "none.png"},
    )  # fmt: skip
    for form in forms:
        assert picture(form, tmp_path).tobytes() == GREY.convert("RGB").tobytes()
    jpeg = base64.b64encode(file_of(GREY, "JPEG")).decode()
    assert jpeg.startswith("/9j/")
    assert picture(jpeg).size == GREY.size


@pytest.mark.parametrize("value", [None, "", " ", b"", [], {"path": None}, {"bytes": None, "path": None}])
def test_no_picture(value):
    """What columns hold where there is none."""
    assert nothing(value)
    with pytest.raises(ConfigError):
        picture(value)


BROKEN = base64.b64encode(file_of(GREY)[:-40]).decode()
REFUSED = {
    "base64 of a broken picture": (BROKEN, "in base64: the picture cannot be read"),
    "base64 of something else": (base64.b64encode(b"secret " * 2000).decode(), "is no picture; possible: PIL"),
    "data URI of something else": ("data:image/png;base64," + "c2VjcmV0" * 9, "in base64: no picture that Pillow"),
    "bytes": (b"secret" * 99, "594 bytes: no picture that Pillow can read"),
    "no file": ("secret/" * 300, "of a picture does not exist"),
    "a name too long": ("secret" * 500, "File name too long"),
    "an address": ("https://example.org/a.png", "'https://example.org/a.png' of a picture does not exist"),
    "a surrogate": ("\ud800.png", "does not exist|cannot be read"),
    "a null": ("\0.png", "does not exist|cannot be read"),
    "a folder": (".", "file '.' of a picture does not exist"),
    "a list": ([1, 2], "cannot be a list"),
    "a truth": (True, "cannot be a bool"),
    "a mapping": ({"url": "x"}, "cannot be a dict"),
    "an empty mapping": ({}, "cannot be a dict"),
    "a mapping of something else": ({"bytes": 3}, "cannot be a int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """One short line, which never repeats the data."""
    value, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as caught:
        picture(value)
    assert len(str(caught.value)) < 250
    assert str(caught.value).count("secret") < 16


def test_models_are_given_scaled_pictures():
    """A 16-bit grey reaches the model as its 8-bit twin does."""
    loaded = load("demo", {}, "cpu")
    deep, plain = (loaded.encode(["what?"], [[image]])["pixel_values"] for image in (DEEP["I;16"], GREY))
    assert deep.equal(plain)
