"""Compare all installed packages with PyPI's advisories. `make audit` runs this, and so does `.ci/run` at its end.

The exit code is 0 without findings, 1 with findings, and 3 if the advisories could not be reached and nothing was
compared; `--may-be-unreachable` turns 3 into 0. Beware: pip-audit reports "no known vulnerabilities" for packages that
it could not look up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

ADVISORIES = "https://pypi.org/pypi/pillow/12.3.0/json"  # where pip-audit looks for one release; mirrors lack it
COMMAND = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "-f", "json"]


def main(arguments: list[str]) -> int:
    """Print what the audit found and return the exit code."""
    try:
        urllib.request.urlopen(ADVISORIES, timeout=10).close()
        audit = subprocess.run(COMMAND, capture_output=True, text=True, timeout=600)
        packages = json.loads(audit.stdout)["dependencies"]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"NOT AUDITED: nothing was compared, because PyPI's advisories cannot be reached ({error})")
        return 0 if "--may-be-unreachable" in arguments else 3
    compared = [package for package in packages if "vulns" in package]
    findings = [(package, flaw) for package in compared for flaw in package["vulns"]]
    for package, flaw in findings:
        print(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {flaw['fix_versions'] or 'no release'}")
    print(f"{len(compared)} packages compared with PyPI's advisories: {len(findings)} found")
    if missed := [package["name"] for package in packages if "vulns" not in package]:
        print("NOT AUDITED, because PyPI does not know them:", *missed)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
