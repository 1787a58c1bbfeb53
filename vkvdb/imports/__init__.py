"""Files of other tools' benchmark results, one tool a file of this folder. Shared code starts with `_`."""
