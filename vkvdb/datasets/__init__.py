"""Datasets, one file each: adapters of public layouts and the worlds we make. Shared code starts with `_`."""
