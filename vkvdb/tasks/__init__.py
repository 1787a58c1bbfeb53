"""Tasks, one file each: labels, a way of reading tokens, and a metric. Shared code starts with `_`."""
