"""One file a command, named after it. Its docstring's first line is its help line; its `command` is a Click command."""
