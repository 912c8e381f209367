"""Model families: where the sites are in each, how its signals are gathered. One family a file."""

from vtc.registry import Registry

FAMILIES: Registry = Registry("family", "vtc.patches")
