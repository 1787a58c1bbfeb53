"""What a person can do wrong, one class a mistake; the docstring is the message.

It says what was asked, what is there, and what to type next.

The command line prints the message as one line and exits with 1. Any other exception is a bug of ours and shows its
traceback.
"""

from __future__ import annotations

from inspect import cleandoc


class VkvdbError(Exception):
    """{message}"""

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        text = " ".join(cleandoc(type(self).__doc__ or "").split())
        super().__init__(text.format(**facts))


class UnknownName(VkvdbError):
    """no {kind} is called '{name}'{nearest}; there are: {known}"""


class NotIngested(VkvdbError):
    """dataset '{name}' is not ingested; ingested: {known}; type: vkvdb ingest {name}{hint}"""


class BadDataset(VkvdbError):
    """{what}; expected {expected}; nothing was written"""


class UnsoundDataset(VkvdbError):
    """{name} is not sound: {where}: {what}{more}; nothing was written; to leave out what is wrong, add --skip-bad"""


class BadImage(VkvdbError):
    """image {path} can't be read: {why}{hint}"""


class BadCheckpoint(VkvdbError):
    """model '{name}': {why}; {hint}"""


class BadOption(VkvdbError):
    """{option} {value}: {why}"""


class NothingCaptured(VkvdbError):
    """model '{model}' yielded nothing at {site}; a site that was asked for must be captured"""


class NotFinite(VkvdbError):
    """model '{model}': {site} of image {image} is not finite; try another --dtype"""


class StoreFailed(VkvdbError):
    """can't write {path}: {why}; nothing of this step was kept"""


class WrongHost(VkvdbError):
    """home {home} belongs to host {owner}, this is {host}; {hint}"""


class OldVersion(VkvdbError):
    """{what} was written by a newer vkvdb ({found}, this one reads up to {known}); upgrade vkvdb"""


class CatalogLocked(VkvdbError):
    """the catalog is open in another process ({why}); close it and type the same again"""


class TooLarge(VkvdbError):
    """this would write {size}, over the budget of {budget}; add --yes, or narrow it: --layers, --parts or --limit"""


class NoSuchJob(VkvdbError):
    """no job starts with '{job}'; see: vkvdb jobs list"""


class BadQuery(VkvdbError):
    """the query was refused: {why}"""


class NothingToDraw(VkvdbError):
    """no result matches {what}; {hint}"""


class TrackingFailed(VkvdbError):
    """MLflow at {uri} did not answer: {why}; results are safe in the store, type vkvdb sync later"""


class DamagedStore(VkvdbError):
    """can't read {path}: {why}; see: vkvdb db verify"""


class QueueFailed(VkvdbError):
    """the queue {path}: {why}; it holds intentions only, so it may be deleted and jobs queued again"""


class AmbiguousJob(VkvdbError):
    """'{job}' begins {count} jobs: {matches}; type more of it"""


class CatalogFailed(VkvdbError):
    """the catalog {path}: {why}; it is only an index of the store: {hint}"""


class BadIntervention(VkvdbError):
    """intervention '{text}': {why}"""


class MaskIgnored(VkvdbError):
    """attention implementation '{attention}' can't be used for a knockout: {what}; type: --attention eager"""


class BadImport(VkvdbError):
    """{path} can't be imported: {why}; expected: {expected}; nothing was written"""


class NoSuchSample(VkvdbError):
    """'{sample}' is no sample of {dataset}: {what}; there are: {some}"""


class NotCalibrated(VkvdbError):
    """the keys of model '{model}' are not calibrated; type: vkvdb calibrate --model {reference}"""
