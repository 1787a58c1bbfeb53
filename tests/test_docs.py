"""README's generated parts say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vkvdb_cli import docs
from vkvdb_cli.main import command_names

ROOT = Path(__file__).parent.parent


def check(page: Path, how: str = "--check") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vkvdb_cli.docs", how, page], capture_output=True, text=True, check=False
    )


def test_readme_is_current() -> None:
    done = check(ROOT / "README.md")
    assert done.returncode == 0, done.stderr


def test_readme_has_every_part() -> None:
    parts = re.findall(r"<!-- generated: ([\w-]+) -->", (ROOT / "README.md").read_text())
    assert sorted(parts) == sorted(docs.PARTS)


def test_an_old_part_is_found_and_renewed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: commands -->\nold\n<!-- end -->\nbetween\n<!-- end -->\n")
    assert check(page).returncode == 1
    assert "old" in page.read_text(), "a check writes nothing"
    assert check(page, "--write").returncode == 0
    assert check(page).returncode == 0
    renewed = page.read_text()
    assert renewed.startswith("before\n<!-- generated: commands -->\n\n| command | does |")
    assert renewed.endswith("<!-- end -->\nbetween\n<!-- end -->\n")
    assert all(f"`vkvdb {name}`" in renewed for name in command_names())


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        docs.renewed("<!-- generated: nonsense -->\n<!-- end -->\n")


def test_every_table_and_column_is_described() -> None:
    from vkvdb.schema import metadata

    assert metadata.sorted_tables
    for table in metadata.sorted_tables:
        assert table.comment, table.name
        assert all(column.comment for column in table.columns), table.name
