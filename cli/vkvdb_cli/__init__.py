"""The command line of vkvdb: one file a command, in `commands/`."""
