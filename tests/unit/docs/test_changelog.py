"""The changelog, the package, the command line and the deployment name the same version."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import yaml

import florence2
from florence2_client import cli

ROOT = Path(__file__).parents[3]
HEADING = re.compile(r"## (\d+)\.(\d+)\.(\d+) \((unreleased|(\d{4}-\d\d-\d\d), commit [0-9a-f]{7,40})\)")


def releases() -> list[re.Match[str]]:
    """Return the headings of the changelog's versions. Fail if a heading has another form."""
    headings = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    found = [HEADING.fullmatch(heading) for heading in headings]
    assert all(found), headings
    return [release for release in found if release]


def test_the_newest_version_of_the_changelog_is_the_packages(capsys):
    """`florence2 --version` prints it, and chart and KServe runtime name the images of it."""
    version = ".".join(releases()[0].groups()[:3])
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "florence2" / "Chart.yaml").read_text())
    runtime = (ROOT / "deploy" / "kserve" / "runtime.yaml").read_text()
    images = re.findall(r"image: florence2-\w+:(\S+)", runtime)
    assert capsys.readouterr().out == f"florence2 {version}\n"
    assert {version} == {florence2.__version__, chart["appVersion"], chart["version"], *images}


def test_versions_descend_and_only_the_newest_may_be_unreleased():
    """All others have the date and the commit of their release, in order."""
    found = releases()
    numbers = [tuple(map(int, release.groups()[:3])) for release in found]
    assert numbers == sorted(set(numbers), reverse=True)
    dates = [datetime.date.fromisoformat(release[5]) for release in found if release[4] != "unreleased"]
    assert dates == sorted(dates, reverse=True) and len(dates) >= len(found) - 1
