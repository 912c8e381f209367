"""The data of benchmarks: their rows, from the hub or from local files, their pictures, and digests of files.

Nothing here knows about any task; tasks import it.
"""
