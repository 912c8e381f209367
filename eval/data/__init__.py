"""What is asked: rows of a benchmark from the hub or local files, their pictures, and a name for their contents.

This room knows no task: tasks read it.
"""
