"""The data people have: files, folders in GLUE's format, a table of one's own."""
