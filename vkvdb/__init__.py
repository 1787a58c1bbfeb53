"""The experiment database for what vision-language models see."""

__version__ = "0.1.0"
