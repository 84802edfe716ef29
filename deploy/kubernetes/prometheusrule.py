"""Writes components/monitoring/prometheusrule.yaml from deploy/monitoring/rules.yml, the one place of the rules.

The rules become a block of the resource as they stand, comments included: all it takes is indentation.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "monitoring" / "rules.yml"
RESOURCE = HERE / "components" / "monitoring" / "prometheusrule.yaml"

_HEAD = """\
# Made from deploy/monitoring/rules.yml by deploy/kubernetes/prometheusrule.py: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fovea
spec:
"""


def resource(rules: str) -> str:
    """The PrometheusRule that holds `rules`, the text of a Prometheus rule file."""
    return _HEAD + "".join(f"  {line}\n" if line.strip() else "\n" for line in rules.splitlines())


def main() -> int:
    RESOURCE.write_text(resource(RULES.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
