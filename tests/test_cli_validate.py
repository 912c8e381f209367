"""`vtc validate`: right and wrong strategy files, and files that are none."""

import pytest

import vtc
from tests.test_cli import run


def test_validate_good(capsys, tmp_path):
    """Every shipped strategy is valid for every family, by name and as a file."""
    for name in vtc.strategies():
        code, out, _ = run(capsys, "validate", name)
        assert (code, out.splitlines()) == (0, [f"{family}: ok" for family in vtc.families()])
    assert run(capsys, "validate", "hiprune", "--family", "llava")[1] == "llava: ok\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("keep: 0.5\nstages: [{method: uniform}]\nkep: 1\n", "did you mean 'keep'"),
        ("keep: 2.0\nstages: [{method: uniform}]\n", "keep=2.0 is out of range"),
        ("keep: 0.5\nstages: [{method: hiprun}]\n", "did you mean 'hiprune'"),
    ],
    ids=["unknown-key", "range", "unknown-method"],
)
def test_validate_bad(capsys, tmp_path, text, expected):
    """One line per family, and exit code 1."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    code, out, err = run(capsys, "validate", file)
    assert code == 1
    assert len(out.splitlines()) == len(vtc.families())
    assert all(expected in line and ": error: " in line for line in out.splitlines()), out
    assert err == ""


@pytest.mark.parametrize(
    "text, expected",
    [
        ("keep: [0.5\n", "is not valid (safe) YAML: expected ',' or ']', but got '<stream end>' (line 2)"),
        ("- a\n- b\n", "holds list"),
        ("keep: !!python/object/apply:os.system ['true']\n", "is not valid (safe) YAML"),
    ],
    ids=["broken", "no-mapping", "unsafe-tag"],
)
def test_validate_unreadable(capsys, tmp_path, text, expected):
    """One line for all families, and exit code 1."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    code, out, err = run(capsys, "validate", file)
    (line,) = out.splitlines()
    assert (code, err) == (1, "")
    assert line.startswith("error: ")
    assert expected in line


def test_validate_one_family_bad(capsys, tmp_path):
    """A section that is wrong for one family is found."""
    file = tmp_path / "half.yaml"
    file.write_text("keep: 0.5\nstages: [{method: uniform}]\nfamilies:\n  llava: {keep: 0}\n")
    code, out, _ = run(capsys, "validate", file)
    assert code == 1
    assert "llava" in [line.partition(":")[0] for line in out.splitlines() if "error: keep=0 is out of range" in line]
