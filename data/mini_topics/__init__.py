"""Ten topics to learn one after another, as files; a package, so that they come along when kvlib is installed."""
