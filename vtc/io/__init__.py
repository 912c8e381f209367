"""Reading and writing: the one YAML loader, the one writer of files, shapes of data that was read, texts on their way
to a page, a table or a terminal, and figures."""
