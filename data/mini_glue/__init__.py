"""The course's eight small tasks, as files; a package, so that they come along when kvlib is installed."""
