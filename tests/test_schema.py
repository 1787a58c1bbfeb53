from __future__ import annotations

import pytest

from vkvdb.jobs import CaptureSpec, Extract, ModelSpec, Score
from vkvdb.schema import metadata, number


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda t: t.name)
def test_every_table_and_column_says_what_it_is(table):
    assert table.comment
    assert [c.name for c in table.columns if not c.comment] == []


def test_facts_have_no_key_and_nothing_has_an_index_or_a_foreign_key():
    keyless = {t.name for t in metadata.sorted_tables if not t.primary_key.columns}
    assert keyless == {"scores", "answers", "summaries", "key_variance", "tokens", "choices"}
    for table in metadata.sorted_tables:
        assert not table.indexes
        assert not table.foreign_keys


def test_jobs_have_every_field_of_the_specification():
    import dataclasses

    fields = {f.name for cls in (ModelSpec, CaptureSpec, Extract, Score) for f in dataclasses.fields(cls)}
    assert fields - {c.name for c in metadata.tables["jobs"].columns} == {"limit"}  # `limited`: LIMIT is SQL's


def test_numbers_begin_as_the_id_does_and_tell_editions_apart():
    assert f"{number('3f2a91c0aaaa' + 20 * '0'):x}" == "3f2a91c0aaaa"
    assert number("3f2a91c0aaaa" + 20 * "0", 2) == number("3f2a91c0aaaa" + 20 * "0") + 2
    assert number("f" * 32, 1000) < 2**53  # exact in JSON
