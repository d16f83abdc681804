"""One experiment a file: `recipe(size)` returns its whole config; the file's name is its name on the command line."""
