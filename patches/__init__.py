"""Model families: where the sites are in each, how its signals are gathered. One family a file."""

if __name__ != "vtc.patches":
    raise ImportError("import vtc.patches, not patches: a second copy would register every family twice")

from vtc.registry import Registry  # noqa: E402

FAMILIES: Registry = Registry("family", "vtc.patches")
