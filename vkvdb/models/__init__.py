"""Model families, one file each; the stem is transformers' `model_type`. Shared code starts with `_`."""
